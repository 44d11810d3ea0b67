"STUB"
import torch
from torch import nn
from sepnb.models.layers import MaskModel
class DeepMaskInference(MaskModel):
    def __init__(self,*,stems=2,channels=2,sample_rate=44100,n_fft=2048,hop_length=1024,hidden=50,mask_exponent=1.0):
        super().__init__(stems=stems,channels=channels,sample_rate=sample_rate,n_fft=n_fft,hop_length=hop_length,mask_exponent=mask_exponent,hidden=hidden)
        f=n_fft//2+1
        self.norm=nn.BatchNorm1d(f); self.rnn=nn.LSTM(f,hidden,2,bidirectional=True,batch_first=True,dropout=.3); self.out=nn.Linear(2*hidden,f*stems)
    def network(self,mag):
        b,c,f,n=mag.shape
        x=10*torch.log10(mag.clamp_min(1e-5)).reshape(b*c,f,n)
        y,_=self.rnn(self.norm(x).transpose(1,2))
        m=self.out(y).sigmoid().reshape(b,c,n,self.stems,f).permute(0,3,1,4,2)
        return m*mag[:,None]
