//! The command tree.

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::{
    bench, broker, cluster, complete, consume, demo, dev, drill, explain, group, partition,
    produce, server, topic, verify,
};

/// Timberline: a log broker. Every record it acknowledges is on disk.
#[derive(Debug, Parser)]
#[command(
    name = "timberline",
    version,
    max_term_width = 100,
    after_help = "\
Try it:
  timberline demo                                     three brokers, a real file, kill -9, nothing lost
  timberline dev up                                   a cluster of three on this machine
  timberline server                                   a broker on 127.0.0.1:7071, data in ./timberline-data
  timberline topic create hello --partitions 1
  echo world | timberline produce hello
  timberline consume hello --from beginning --until-end

Exit codes: 0 done, 1 failed, 2 usage, 3 unhealthy, 4 timed out."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Server(server::ServerArgs),
    Demo(demo::DemoArgs),
    Dev(dev::DevArgs),
    Drill(drill::DrillArgs),
    Topic(topic::TopicArgs),
    Produce(produce::ProduceArgs),
    Consume(consume::ConsumeArgs),
    Group(group::GroupArgs),
    Cluster(cluster::ClusterArgs),
    Partition(partition::PartitionArgs),
    Broker(broker::BrokerArgs),
    Bench(bench::BenchArgs),
    Verify(verify::VerifyArgs),
    Explain(explain::ExplainArgs),
    Completions(complete::CompletionsArgs),
}

/// Commands that have their place in the tree and are not built yet.
const NOT_BUILT: &[&[&str]] = &[
    &["profile"],
    &["man"],
    &["generate"],
    &["verify", "replicas"],
    &["bench", "failover"],
    &["cluster", "config"],
];

/// Tells a command that is not built yet from one that is misspelt.
pub(crate) fn refuse_what_is_not_built(
    arguments: impl IntoIterator<Item = String>,
) -> Result<(), Failure> {
    let words: Vec<String> = arguments.into_iter().skip(1).take(2).collect();
    let found = NOT_BUILT.iter().find(|path| {
        path.len() <= words.len() && path.iter().zip(&words).all(|(known, word)| known == word)
    });
    match found {
        None => Ok(()),
        Some(path) => Err(Failure::not_built(format!(
            "`timberline {}` is not built yet",
            path.join(" ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_not_built_is_told_from_what_is() {
        let check =
            |line: &str| refuse_what_is_not_built(line.split(' ').map(str::to_owned)).is_err();
        assert!(check("timberline verify replicas"));
        assert!(!check("timberline verify log"));
        assert!(!check("timberline"));
        assert!(!check("timberline drill group-join"));
        assert!(!check("timberline produce group"));
    }
}
