"""Everything `feedback` can refuse, as one tree.

FeedbackError
├── ConfigError          a configuration file, key or value that cannot be used
├── CodecError           bytes that are no event
│   └── UnknownEventType     an event type or major version this release does not know
├── LimitExceeded        an event too large, or from another time, to be taken for what it says
├── LogError             the event log did not take or give what it was asked for
│   ├── LogUnavailable       broker or file out of reach: try again later
│   └── LogFull              no space left: nothing was written
├── StateUnavailable     the state database did not answer or is locked: try again later
├── SnapshotError        a snapshot that is missing, incomplete or not what its manifest says
├── ExportError          a place that an export cannot be written to, or nothing to write
└── NothingFound         a row, reply, user or dead letter that is nowhere to be found
"""


class FeedbackError(Exception):
    pass


class ConfigError(FeedbackError):
    pass


class CodecError(FeedbackError):
    pass


class UnknownEventType(CodecError):
    pass


class LimitExceeded(FeedbackError):
    pass


class LogError(FeedbackError):
    pass


class LogUnavailable(LogError):
    pass


class LogFull(LogError):
    pass


class StateUnavailable(FeedbackError):
    pass


class SnapshotError(FeedbackError):
    pass


class ExportError(FeedbackError):
    pass


class NothingFound(FeedbackError):
    pass
