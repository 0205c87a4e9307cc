//! `timberline completions`, and what they ask a live cluster.
//!
//! The shell calls this program back with [`VARIABLE`] set, so that completions know the topics of the moment.

use std::time::Duration;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::CompletionCandidate;
use clap_complete::env::Shells;
use timberline_client::{Admin, Client, ClientOptions};

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::print_text;
use crate::values::count;

/// Set by the shell's script when it wants candidates.
pub(crate) const VARIABLE: &str = "TIMBERLINE_COMPLETE";
/// A shell does not wait longer for topics.
const PATIENCE: Duration = Duration::from_millis(500);

/// Print a shell's completion script.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(timberline completions bash)                                    for this shell
  timberline completions fish > ~/.config/fish/completions/timberline.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let name = match args.shell {
        Shell::Bash => "bash",
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::Powershell => "powershell",
        Shell::Zsh => "zsh",
    };
    let shells = Shells::builtins();
    let Some(shell) = shells.completer(name) else {
        return Err(Failure::failed(format!("no completions for {name}")));
    };
    let program = Cli::command().get_name().to_owned();
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, &program, &program, &program, &mut script)
        .map_err(|error| Failure::failed(format!("writing the completions: {error}")))?;
    print_text(&String::from_utf8_lossy(&script))
}

/// The topics of the cluster that the environment names. None when it can't be reached at once.
pub(crate) fn topics() -> Vec<CompletionCandidate> {
    let topics = ask(async |admin| admin.list_topics(false).await.ok());
    topics
        .unwrap_or_default()
        .into_iter()
        .map(|topic| {
            let help = count(topic.partitions.len(), "partition");
            CompletionCandidate::new(topic.name).help(Some(help.into()))
        })
        .collect()
}

/// The groups of that cluster, likewise.
pub(crate) fn groups() -> Vec<CompletionCandidate> {
    let listed = ask(async |admin| admin.list_groups("").await.ok());
    let groups = listed.map(|listed| listed.groups).unwrap_or_default();
    groups
        .into_iter()
        .map(|group| {
            let help = count(group.members, "member");
            CompletionCandidate::new(group.group).help(Some(help.into()))
        })
        .collect()
}

fn ask<T>(question: impl AsyncFnOnce(Admin) -> Option<T>) -> Option<T> {
    let asked = async {
        let bootstrap =
            std::env::var("TIMBERLINE_BOOTSTRAP").unwrap_or("127.0.0.1:7071".to_owned());
        let options = ClientOptions::default().bootstrap([bootstrap]);
        let client = Client::connect(options).await.ok()?;
        question(client.admin()).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
    answer.ok().flatten()
}
