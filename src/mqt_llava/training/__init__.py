"""Matryoshka training: budget samplers, data, collators and trainer."""

from .assemble import build_collator, build_processor
from .budgets import BudgetSampler, FixedBudget, LogBudget, UniformBudget, WeightedBudget, parse_budget
from .checkpoints import last_complete_checkpoint, load_trained_parts
from .collator import PLAIN_TEMPLATE, BudgetCollator
from .dataset import ConversationDataset, TooManyBadRecords
from .parts import train_parts
from .projector_fit import ProjectorFitTrainer, fit_arguments
from .question_collator import QuestionCollator
from .records import RecordError, read_record
from .trainer import MQTLlavaTrainer, MQTLlavaTrainingArguments


__all__ = [
    "PLAIN_TEMPLATE",
    "BudgetCollator",
    "BudgetSampler",
    "ConversationDataset",
    "FixedBudget",
    "LogBudget",
    "MQTLlavaTrainer",
    "MQTLlavaTrainingArguments",
    "ProjectorFitTrainer",
    "QuestionCollator",
    "RecordError",
    "TooManyBadRecords",
    "UniformBudget",
    "WeightedBudget",
    "build_collator",
    "build_processor",
    "fit_arguments",
    "last_complete_checkpoint",
    "load_trained_parts",
    "parse_budget",
    "read_record",
    "train_parts",
]
