"""Tensor types of the project: the one place where shapes are spelled out.

Axis legend
-----------
B  batch (independent dreams or training segments)
T  frames
H, W, C  pixel rows, pixel columns, colour channels
N  tokens per frame (token rows x token columns)
D  model width
A  dimension of a continuous action
P  dimension of a pose
M  numbers that odometry carries from frame to frame
R  classes of the reward head
K  blocks of a frame in one layer
L  tokens in one scanned sequence
h, d  heads and their dimension
s  dimension of the SSM state
V  values in a cell of a map, and their weight
g  groups of consecutive heads that share what writes to a state and what reads from it

"Frames" are uint8, channels last, 0..255. "ModelFrames" are float, channels first, -1..1; see :mod:`wm_gym.codec`.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

Frame = UInt8[Tensor, "B H W C"]
Frames = UInt8[Tensor, "B T H W C"]
ModelFrame = Float[Tensor, "B C H W"]
ModelFrames = Float[Tensor, "B T C H W"]

NoiseLevel = Float[Tensor, "B"]
NoiseLevels = Float[Tensor, "B T"]

Action = Shaped[Tensor, "B *A"]
Actions = Shaped[Tensor, "B T *A"]
Pose = Float[Tensor, "B P"]
Poses = Float[Tensor, "B T P"]
Motions = Float[Tensor, "B T 3"]
OdometryState = Float[Tensor, "B M"]

Tokens = Float[Tensor, "B T rows columns D"]
Condition = Float[Tensor, "B T D"]
RewardLogits = Float[Tensor, "B T R"]
TerminationLogits = Float[Tensor, "B T"]

ScanInput = Float[Tensor, "sequences L h d"]
ScanStep = Float[Tensor, "sequences L h"]
ScanProjection = Float[Tensor, "sequences L g s"]
ScanState = Float[Tensor, "sequences h d s"]

Heads = Float[Tensor, "B T N h d"]
SSMState = Float[Tensor, "B K h d s"]
ConvState = Float[Tensor, "B K taps channels"]
KVCache = Float[Tensor, "B window N 2 h d"]
FrameMap = Float[Tensor, "B cells V"]

RowMask = Bool[Tensor, "B"]
FrameMask = Bool[Tensor, "B T"]
RowCount = Int[Tensor, "B"]
