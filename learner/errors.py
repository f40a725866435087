"""Everything `learner` can refuse, as one tree.

LearnerError
├── DataError          rows that nothing can be learned from; names file, row and column
│   └── MissingData        the snapshot lacks what the chosen method learns from
├── MissingExtra       the chosen method needs a package that is not installed
├── ModelError         a base model or adapter directory that is not one, or does not fit the trunk
├── ShapeError         tensors that do not belong together
├── GuardError         training would have gone on with wrong numbers: the run stops instead
│   ├── RatioError         new and old policy differ before the first optimizer step
│   └── SamplerError       sampler and trainer disagree about the probability of the same tokens
├── CheckpointError    a checkpoint that is not whole, or belongs to another run
├── ConstitutionError  a file of principles that cannot be used
├── JudgeError         the judge gave no answer: out of reach, refusing, or no chat endpoint
│   └── JudgeRefused       it would not take this one request, such as too long a conversation
├── ProblemError       a problem file that cannot be used
├── VerifierError      a reply to a problem could not be checked: no verdict
├── ProbeError         a probe set that cannot be used, or a gold scorer that is none
├── Busy               another learner is taking a turn on the same runs
└── SamplingError      no engine gave the samples that were asked for
"""


class LearnerError(Exception):
    pass


class DataError(LearnerError):
    pass


class MissingData(DataError):
    pass


class MissingExtra(LearnerError):
    pass


class ModelError(LearnerError):
    pass


class ShapeError(LearnerError):
    pass


class GuardError(LearnerError):
    pass


class RatioError(GuardError):
    pass


class SamplerError(GuardError):
    pass


class CheckpointError(LearnerError):
    pass


class ConstitutionError(LearnerError):
    pass


class ProblemError(LearnerError):
    pass


class VerifierError(LearnerError):
    pass


class ProbeError(LearnerError):
    pass


class JudgeError(LearnerError):
    pass


class JudgeRefused(JudgeError):
    pass


class Busy(LearnerError):
    pass


class SamplingError(LearnerError):
    pass
