//! The one binary: server, dev cluster, admin, produce, consume, bench, drill, verify.
//!
//! A file for each group of commands; `cli` lists them. Rules that hold for all (scripts rely on them, and
//! `tests/` checks them): results go to standard output, everything else to standard error; exit codes 0 done, 1 failed,
//! 2 usage, 3 unhealthy, 4 timed out; an error says its cause, its reason code and what to try next; nothing is coloured
//! off a terminal; a closed standard output ends a command quietly.
//!
//! What it is not: there is no logic of the log, of the protocol or of a load here; see `broker`, `client`, `workload`.
#![forbid(unsafe_code)]

mod bench;
mod broker;
mod cli;
mod cluster;
mod complete;
mod confirm;
mod connect;
mod consume;
mod demo;
mod dev;
mod drill;
mod explain;
mod failure;
mod group;
mod json;
mod output;
mod partition;
mod produce;
mod progress;
mod server;
mod topic;
mod values;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use failure::Failure;

/// Allocates less memory and faster than the system's under the broker's load of many short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(cli::Cli::command)
        .var(complete::VARIABLE)
        .complete();
    let outcome = cli::refuse_what_is_not_built(std::env::args())
        .and_then(|()| run(cli::Cli::parse().command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: cli::Command) -> Result<(), Failure> {
    use cli::Command;
    match command {
        Command::Explain(args) => explain::run(&args),
        Command::Completions(args) => complete::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Server(args) => server::run(&args),
        Command::Demo(args) => clients()?.block_on(Box::pin(demo::run(args))),
        Command::Dev(args) => clients()?.block_on(Box::pin(dev::run(args))),
        Command::Drill(args) => clients()?.block_on(drill::run(args)),
        Command::Topic(args) => clients()?.block_on(topic::run(args)),
        Command::Produce(args) => clients()?.block_on(Box::pin(produce::run(args))),
        Command::Consume(args) => clients()?.block_on(Box::pin(consume::run(args))),
        Command::Group(args) => clients()?.block_on(Box::pin(group::run(args))),
        Command::Cluster(args) => clients()?.block_on(Box::pin(cluster::run(args))),
        Command::Partition(args) => clients()?.block_on(Box::pin(partition::run(args))),
        Command::Broker(args) => clients()?.block_on(Box::pin(broker::run(args))),
        Command::Bench(args) => clients()?.block_on(Box::pin(bench::run(args))),
    }
}

/// The runtime of client commands.
fn clients() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("starting threads: {error}")))
}
