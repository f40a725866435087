"""Which event log the configuration asks for."""

from feedback.config import Deployment
from feedback.eventlog import EventLog


def open_log(deployment: Deployment) -> EventLog:
    """The log that the pipeline reads: Kafka, or the gateway's own file.

    Raises: LogUnavailable.
    """
    if deployment.log == "kafka":
        from feedback.kafka import KafkaLog  # the client is loaded only where it is used

        return KafkaLog(deployment.kafka_servers, deployment.kafka_prefix, deployment.kafka_partitions)
    from feedback.embedded import EmbeddedLog

    deployment.data_dir.mkdir(parents=True, exist_ok=True)
    return EmbeddedLog(deployment.log_path)
