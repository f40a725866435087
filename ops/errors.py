"""Everything `ops` can refuse, as one tree.

OpsError
├── UnknownAdapter       no adapter of that name is registered
├── InvalidAdapter       files that are no adapter for this base model, or not the ones registered
├── TransitionRefused    a state change that the state machine or its evidence does not allow
├── RevisionConflict     somebody else changed the record first: read again and decide again
├── RegistryUnavailable  the registry's database is out of reach
├── NoBaseModel          the base model is not made yet, or its folder is none
├── PortInUse            a port that the service needs is taken
├── StartFailed          the service did not become ready
├── UnknownQuestion      the simulated help desk was asked something outside its domain
└── EngineError          a vLLM replica refused or did not answer
    └── EngineUnavailable    it is down or too slow: try another replica, or later
"""


class OpsError(Exception):
    pass


class UnknownAdapter(OpsError):
    pass


class InvalidAdapter(OpsError):
    pass


class TransitionRefused(OpsError):
    pass


class RevisionConflict(OpsError):
    pass


class RegistryUnavailable(OpsError):
    pass


class UnknownQuestion(OpsError):
    pass


class NoBaseModel(OpsError):
    pass


class PortInUse(OpsError):
    pass


class StartFailed(OpsError):
    pass


class EngineError(OpsError):
    pass


class EngineUnavailable(EngineError):
    pass
