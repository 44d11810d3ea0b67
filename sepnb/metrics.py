"STUB"
from collections import namedtuple
import torch
BSSEval=namedtuple("BSSEval","sdr isr sir sar")
def _fr(e,s,sr):
    n=s.shape[-1]//sr; f=lambda x: x[...,:n*sr].reshape(*x.shape[:-1],n,sr).double()
    return f(e),f(s)
def bsseval_v4(estimates,sources,*,sample_rate,window_s=1.0,hop_s=1.0):
    e,s=_fr(estimates,sources,sample_rate)
    v=10*torch.log10(s.square().sum((1,3))/(s-e).square().sum((1,3)))
    bad=((s.sum(1)==0).all(-1)|(e.sum(1)==0).all(-1)).any(0); v[:,bad]=float("nan")
    return BSSEval(v,v,v,v)
def framewise_si_sdr(estimates,sources,*,sample_rate,window_s=1.0,hop_s=1.0):
    e,s=_fr(estimates.sum(1),sources.sum(1),sample_rate)
    a=(e*s).sum(-1,keepdim=True)/s.square().sum(-1,keepdim=True)
    return 10*torch.log10((a*s).square().sum(-1)/(a*s-e).square().sum(-1))
