#!/usr/bin/env bash
# Runs one Apache Kafka broker (KRaft: broker and controller in one process) in the foreground.
#
#   start.sh DATA_DIR [PORT [CONTROLLER_PORT]]      defaults: 9092 and PORT + 1
#
# Binds to 127.0.0.1 only. A new DATA_DIR is formatted; on an old one this is a restart. SIGTERM stops it
# cleanly, SIGKILL is a crash. KAFKA_HEAP (512m) sets the heap, KAFKA_LOG_LEVEL (warn) the log, KAFKA_EXTRA
# names a file of further properties, which win over the ones below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=${1:?usage: start.sh DATA_DIR [PORT [CONTROLLER_PORT]]}
port=${2:-9092}
controller_port=${3:-$((port + 1))}
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
command -v "$java" >/dev/null ||
  { echo "start.sh: Java 17 or newer is needed (Debian: openjdk-17-jre-headless)" >&2; exit 2; }
"$here/fetch.sh"

mkdir -p "$data"
data=$(cd "$data" && pwd)
config="$data/server.properties"
cat >"$config" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$data/log
# one broker: nothing can be replicated
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# ratchet makes its topics itself, with the partitions that its configuration asks for
auto.create.topics.enable=false
# small, and quick to come back after a crash
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
PROPERTIES
if [ -n "${KAFKA_EXTRA:-}" ]; then cat "$KAFKA_EXTRA" >>"$config"; fi

run=("$java" "-Xmx${KAFKA_HEAP:-512m}" -XX:+UseSerialGC -XX:TieredStopAtLevel=1
     "-Dorg.slf4j.simpleLogger.defaultLogLevel=${KAFKA_LOG_LEVEL:-warn}" -cp "$here/libs/*")
if [ ! -e "$data/log/meta.properties" ]; then
  "${run[@]}" kafka.tools.StorageTool format --ignore-formatted \
    --cluster-id "$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')" --config "$config"
fi
exec "${run[@]}" kafka.Kafka "$config"
