"""Every optimizer of ``torch.optim`` as a pure function of model, gradients and state."""

from parallax.optim.adadelta import Adadelta
from parallax.optim.adafactor import Adafactor
from parallax.optim.adagrad import Adagrad
from parallax.optim.adam import Adam, AdamW
from parallax.optim.adamax import Adamax
from parallax.optim.asgd import ASGD
from parallax.optim.muon import Muon
from parallax.optim.nadam import NAdam
from parallax.optim.radam import RAdam
from parallax.optim.rmsprop import RMSprop
from parallax.optim.rprop import Rprop
from parallax.optim.sgd import SGD
