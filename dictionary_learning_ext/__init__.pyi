"""The public names, and where each is defined. `__init__.py` imports them when they are first used."""

from .activations.buffer import ResidualBuffer as ResidualBuffer
from .activations.hook_points import find_hook as find_hook
from .activations.language_models import load_language_model as load_language_model
from .activations.stored import open_stored as open_stored
from .activations.text import open_text as open_text
from .codes.codes import Codes as Codes
from .config.presets import preset as preset
from .config.presets import trainer_options as trainer_options
from .config.run import RunConfig as RunConfig
from .config.sae import BatchTopKConfig as BatchTopKConfig
from .config.sae import JumpReLUConfig as JumpReLUConfig
from .config.sae import MatryoshkaConfig as MatryoshkaConfig
from .config.sae import ProbabilisticTopKConfig as ProbabilisticTopKConfig
from .config.sae import ReLUConfig as ReLUConfig
from .config.sae import TopKConfig as TopKConfig
from .config.sae import VAEaseConfig as VAEaseConfig
from .config.sae import VSAEAsPublishedConfig as VSAEAsPublishedConfig
from .config.sae import VSAEBatchTopKConfig as VSAEBatchTopKConfig
from .config.sae import VSAEConfig as VSAEConfig
from .config.sae import VSAETopKConfig as VSAETopKConfig
from .errors import UserError as UserError
from .evaluation.folders import evaluate_folders as evaluate_folders
from .evaluation.measure import measure as measure
from .evaluation.tables import table as table
from .features.directions import RandomDirections as RandomDirections
from .features.directions import decoder_directions as decoder_directions
from .features.features_of import encode_text as encode_text
from .features.features_of import features_of as features_of
from .features.reproduce import agreement as agreement
from .features.reproduce import reproduce as reproduce
from .features.reproducibility import reproducibility as reproducibility
from .features.steering import steer as steer
from .features.synthesis import synthesise as synthesise
from .run_folder.sae_folder import read_metrics as read_metrics
from .run_folder.weights import load_dictionary as load_dictionary
from .trainers.probabilistic_top_k import ProbabilisticTopKTrainer as ProbabilisticTopKTrainer
from .trainers.vaease import VAEase as VAEase
from .trainers.vaease import VAEaseTrainer as VAEaseTrainer
from .trainers.variational_batch_top_k import (
    VariationalBatchTopKAutoEncoder as VariationalBatchTopKAutoEncoder,
)
from .trainers.variational_batch_top_k import (
    VariationalBatchTopKTrainer as VariationalBatchTopKTrainer,
)
from .trainers.variational_top_k import VariationalTopKAutoEncoder as VariationalTopKAutoEncoder
from .trainers.variational_top_k import VariationalTopKTrainer as VariationalTopKTrainer
from .trainers.vsae_as_published import VSAEAsPublishedTrainer as VSAEAsPublishedTrainer
from .trainers.vsae_as_published import VSAETopK as VSAETopK
from .training.loop import train as train
from .training.loop import train_saes as train_saes

__version__: str
