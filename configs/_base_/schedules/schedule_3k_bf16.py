# In bfloat16, for a GPU.
_base_ = './schedule_3k.py'
optim_wrapper = dict(type='BFloat16OptimWrapper')
