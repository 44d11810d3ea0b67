"STUB until the real chapter lands"
from dataclasses import dataclass
import math, numpy as np, soundfile as sf, torch, soxr
from sepnb.core import SepnbError, atomic_path
@dataclass(frozen=True)
class AudioInfo:
    sample_rate:int; channels:int; samples:int
    @property
    def seconds(self): return self.samples/self.sample_rate
def audio_info(path):
    try: i=sf.info(str(path))
    except Exception as e: raise SepnbError(f"{path}: {e}")
    return AudioInfo(i.samplerate,i.channels,i.frames)
def load_audio(path,*,start_s=0.0,duration_s=None,sample_rate=None,channels=None):
    i=audio_info(path); a=round(start_s*i.sample_rate); n=-1 if duration_s is None else round(duration_s*i.sample_rate)
    x,r=sf.read(str(path),start=a,frames=n,dtype='float32',always_2d=True); x=torch.from_numpy(np.ascontiguousarray(x.T))
    if channels: x=match_channels(x,channels)
    if sample_rate: x=resample(x,r,sample_rate); r=sample_rate
    return x,r
def save_audio(path,x,sample_rate,*,subtype="PCM_16",overwrite=False):
    with atomic_path(path,overwrite=overwrite) as p:
        sf.write(str(p),x.T.numpy(),sample_rate,subtype=None if str(path).endswith('mp3') else subtype)
def resample(x,a,b):
    if a==b: return x
    y=soxr.resample(x.reshape(-1,x.shape[-1]).T.double().numpy(),a,b).T
    n=math.ceil(x.shape[-1]*b/a); y=np.pad(y[:,:n],((0,0),(0,max(0,n-y.shape[1]))))
    return torch.from_numpy(y.copy()).to(x.dtype).reshape(*x.shape[:-1],n)
def match_channels(x,n):
    c=x.shape[-2]
    if c==n: return x
    if c==1: return x.expand(*x.shape[:-2],n,x.shape[-1])
    if n==1: return x.mean(-2,keepdim=True)
    raise SepnbError("channels")
