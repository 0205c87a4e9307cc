//! `timberline dev`: a cluster on this machine, of real broker processes.
//!
//! [`state`] remembers the brokers in the cluster's directory, so every command finds them, whoever started them;
//! [`status`] looks at them; [`last`] finds the cluster that was started last. What a broker's process is, and how one is started, is in `workload`.

mod last;
mod state;
mod status;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use timberline_workload::{BASE_PORT, Cluster, ClusterOptions, ProcessState};
use tokio::signal::unix::{SignalKind, signal};

use self::state::{Locked, State, read};
use self::status::Asker;
use crate::failure::{ADDRESS_IN_USE, Failure};
use crate::output::{Format, print, print_text};
use crate::values::{count, count_are};

/// Where a cluster is kept unless told otherwise.
const DIR: &str = "timberline-dev";
/// Brokers of a cluster unless told otherwise.
const BROKERS: usize = 3;
/// How long brokers may take to form a cluster.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a broker may take to answer after a restart.
const RESTART_PATIENCE: Duration = Duration::from_secs(30);
/// How long a broker may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a process.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Between two pictures of the live table.
const DRAW_EVERY: Duration = Duration::from_secs(1);

/// Run a cluster on this machine: real broker processes on loopback, no containers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline dev up                              three brokers in three racks; Ctrl-C ends them
  timberline dev up --detach                     the same in the background
  timberline dev status
  timberline dev kill 2                          kill -9; the others go on
  timberline dev restart 2
  timberline dev down                            ends all; the data stays, `dev up` goes on with it")]
pub(crate) struct DevArgs {
    #[command(subcommand)]
    command: DevCommand,

    /// The cluster's directory, for logs and data [default: ./timberline-dev; where that holds no cluster, all
    /// commands but `up` take the one that was started last].
    #[arg(long, global = true, env = "TIMBERLINE_DEV_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    Up(UpArgs),
    Status(StatusArgs),
    /// Kill a broker with SIGKILL, as a crash would.
    Kill(BrokerArg),
    /// Hold a broker with SIGSTOP: it is there and does not answer.
    Pause(BrokerArg),
    /// Let a paused broker go on.
    Resume(BrokerArg),
    /// Start a broker again; one that runs is stopped first.
    Restart(BrokerArg),
    /// Stop all brokers. Their data stays.
    Down,
}

/// Start the brokers and wait until they are a cluster.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  timberline dev up
  timberline dev up --brokers 5 --racks a,b,c --dir /tmp/five --base-port 8071 --detach

Broker 1 listens on 7071 (gRPC), 7072 (other brokers) and 7073 (HTTP), each further one ten ports on.")]
struct UpArgs {
    /// Number of brokers [default: 3, or as many as the directory holds].
    #[arg(long, value_name = "N")]
    brokers: Option<usize>,

    /// Racks, dealt out to the brokers in turn [default: one for each broker].
    #[arg(long, value_name = "RACK,…", value_delimiter = ',')]
    racks: Vec<String>,

    /// The first of the ports [default: 7071].
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,

    /// Leave the brokers running in the background.
    #[arg(long)]
    detach: bool,
}

/// Show the brokers and their processes.
#[derive(Debug, Args)]
struct StatusArgs {
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct BrokerArg {
    /// The broker's number, from 1.
    #[arg(value_name = "N")]
    broker: i32,
}

pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
    let starts = matches!(args.command, DevCommand::Up(_));
    let dir = match args.dir {
        Some(dir) => dir,
        None if starts => DIR.into(),
        None => last::find(Path::new(DIR)),
    };
    let dir = absolute(dir)?;
    match args.command {
        DevCommand::Up(args) => up(&dir, &args).await,
        DevCommand::Status(args) => show(&dir, args.output).await,
        DevCommand::Kill(arg) => kill(&dir, arg.broker).await,
        DevCommand::Pause(arg) => pause(&dir, arg.broker),
        DevCommand::Resume(arg) => resume(&dir, arg.broker),
        DevCommand::Restart(arg) => restart(&dir, arg.broker).await,
        DevCommand::Down => down(&dir).await,
    }
}

fn absolute(dir: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&dir)
        .map_err(|error| Failure::failed(format!("{}: {error}", dir.display())))
}

// Up.

async fn up(dir: &Path, args: &UpArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .map_err(|error| Failure::failed(format!("making {}: {error}", dir.display())))?;
    let locked = Locked::new(dir)?;
    let mut state = planned(dir, locked.read()?, args)?;
    let specs = state.specs();
    for spec in &specs {
        if let Some((what, address)) = spec.addresses.taken() {
            return Err(Failure::failed(format!(
                "{address}, for {what} of broker {}, is in use",
                spec.id
            ))
            .reason(ADDRESS_IN_USE)
            .next(
                "Stop who listens there, or choose others: `timberline dev up --base-port 8071`.",
            ));
        }
    }
    let begun = Instant::now();
    let mut cluster = Cluster::start_all(&program()?, specs)?;
    for (spec, identity) in cluster.running() {
        state.broker(spec.id)?.process = Some(identity.clone());
    }
    locked.write(&state)?;
    drop(locked);
    last::remember(dir);
    let mut signals = Signals::listen()?;
    tokio::select! {
        // Those that were started are killed with the cluster.
        ready = cluster.wait_ready(START_PATIENCE) => ready.map_err(|error| {
            Failure::from(error).next(format!("Look into the logs below {}.", dir.display()))
        })?,
        () = signals.next() => return Err(Failure::failed("interrupted before the cluster was ready")),
    };
    cluster.leave();
    let text = format!(
        "{} up after {} ms; logs and data are in {}\nbootstrap  {}\nfor other commands here:  export TIMBERLINE_BOOTSTRAP={}\n",
        count_are(state.brokers.len(), "broker"),
        begun.elapsed().as_millis(),
        dir.display(),
        state.bootstrap(),
        state.bootstrap(),
    );
    print_text(&text)?;
    if args.detach {
        return Ok(());
    }
    watch(dir, &mut signals).await
}

/// The cluster that is to be started: the one that the directory holds, or another.
fn planned(dir: &Path, held: Option<State>, args: &UpArgs) -> Result<State, Failure> {
    let Some(held) = held else {
        let brokers = args.brokers.unwrap_or(BROKERS);
        let mut options = ClusterOptions::new("", dir, brokers);
        options.base_port = Some(args.base_port.unwrap_or(BASE_PORT));
        if !args.racks.is_empty() {
            options.racks.clone_from(&args.racks);
        }
        return Ok(State::of(&options.plan()?));
    };
    let here = dir.display();
    if held.is_alive() {
        return Err(Failure::failed(format!("the cluster in {here} is running")).next(format!(
            "See it with `timberline dev status --dir {here}`; end it with `timberline dev down --dir {here}`, or name another --dir."
        )));
    }
    let mut racks: Vec<_> = held
        .brokers
        .iter()
        .filter_map(|broker| broker.rack.clone())
        .collect();
    let dealt = args.racks.iter().cycle().take(held.brokers.len());
    let other_racks = !args.racks.is_empty() && !dealt.eq(racks.iter());
    let other_count = args
        .brokers
        .is_some_and(|brokers| brokers != held.brokers.len());
    if other_racks || other_count {
        racks.dedup();
        return Err(Failure::failed(format!(
            "{here} holds a cluster of {} in the racks {}",
            count(held.brokers.len(), "broker"),
            racks.join(", ")
        ))
        .next(format!(
            "Start it as it is with `timberline dev up --dir {here}`, or name another --dir."
        )));
    }
    let Some(base) = args.base_port else {
        return Ok(held);
    };
    let mut moved = held;
    for (at, broker) in moved.brokers.iter_mut().enumerate() {
        broker.addresses = timberline_workload::BrokerAddresses::from_base(base, at)?;
    }
    Ok(moved)
}

fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::failed(format!("finding this program: {error}")))
}

/// Shows the cluster until it is ended from here or elsewhere.
async fn watch(dir: &Path, signals: &mut Signals) -> Result<(), Failure> {
    let live = io::stdout().is_terminal();
    if !live {
        print_text("Ctrl-C, SIGTERM or `timberline dev down` end it.\n")?;
    }
    let mut asker = Asker::default();
    let mut drawn = 0;
    loop {
        let Some(state) = read(dir)? else {
            return Err(Failure::failed(format!("{} has gone", dir.display())));
        };
        if state.brokers.iter().all(|broker| broker.process.is_none()) {
            return print_text("the cluster was brought down\n");
        }
        if live {
            let picture = asker.ask(&state).await;
            let text = format!(
                "\n{}\nCtrl-C ends it. Elsewhere: `timberline dev kill|pause|resume|restart N`\n",
                status::table(&state, picture.as_ref())
            );
            // Over the one before.
            let mut out = io::stdout().lock();
            if drawn > 0 {
                write!(out, "\u{1b}[{drawn}F\u{1b}[J")?;
            }
            out.write_all(text.as_bytes())?;
            out.flush()?;
            drawn = text.lines().count();
        }
        tokio::select! {
            () = tokio::time::sleep(DRAW_EVERY) => {}
            () = signals.next() => return down(dir).await,
        }
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::failed(format!("listening for signals: {e}")));
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

// The others.

async fn show(dir: &Path, output: Format) -> Result<(), Failure> {
    let state = held(dir, read(dir)?)?;
    let picture = match output.is_table() && state.is_alive() {
        true => Asker::default().ask(&state).await,
        false => None,
    };
    print(output, &status::value(&state), || {
        status::table(&state, picture.as_ref())
    })
}

async fn kill(dir: &Path, id: i32) -> Result<(), Failure> {
    let (_locked, mut state) = open(dir)?;
    let broker = state.broker(id)?;
    let process = broker.alive().ok_or_else(|| is_down(dir, id))?;
    process.kill()?;
    wait_down(process, STOP_PATIENCE).await;
    print_text(&format!("killed broker {id}, process {}\n", process.pid))
}

fn pause(dir: &Path, id: i32) -> Result<(), Failure> {
    let (_locked, mut state) = open(dir)?;
    let broker = state.broker(id)?;
    let process = broker.alive().ok_or_else(|| is_down(dir, id))?;
    process.pause()?;
    print_text(&format!("paused broker {id}, process {}\n", process.pid))
}

fn resume(dir: &Path, id: i32) -> Result<(), Failure> {
    let (_locked, mut state) = open(dir)?;
    let broker = state.broker(id)?;
    let process = broker.alive().ok_or_else(|| is_down(dir, id))?;
    process.resume()?;
    print_text(&format!("resumed broker {id}, process {}\n", process.pid))
}

async fn restart(dir: &Path, id: i32) -> Result<(), Failure> {
    let (locked, mut state) = open(dir)?;
    let broker = state.broker(id)?;
    if let Some(process) = broker.alive() {
        stop(process)?;
        end(process).await?;
    }
    let spec = state.specs().into_iter().find(|spec| spec.id == id);
    let Some(spec) = spec else {
        return Err(Failure::usage(format!("there is no broker {id}")));
    };
    let mut process = spec.start(&program()?)?;
    state.broker(id)?.process = Some(process.identity().clone());
    locked.write(&state)?;
    drop(locked);
    let ready = process.wait_ready(RESTART_PATIENCE).await;
    let alive = process.check_alive().is_ok();
    let pid = process.pid();
    if alive {
        // It may yet come to itself, say when others are started too.
        process.leave();
    }
    let took = ready.map_err(|error| {
        Failure::from(error).next("Are there enough others? See `timberline dev status`.")
    })?;
    print_text(&format!(
        "broker {id} is up after {} ms, process {pid}\n",
        took.as_millis()
    ))
}

async fn down(dir: &Path) -> Result<(), Failure> {
    let (locked, mut state) = open(dir)?;
    let mut ended = 0;
    let alive = || {
        state
            .brokers
            .iter()
            .filter_map(|broker| broker.alive().cloned())
    };
    let processes: Vec<_> = alive().collect();
    for process in &processes {
        stop(process)?;
    }
    for process in &processes {
        end(process).await?;
        ended += 1;
    }
    for broker in &mut state.brokers {
        broker.process = None;
    }
    locked.write(&state)?;
    print_text(&format!(
        "{} down; the data stays in {}\n",
        count_are(ended, "broker"),
        dir.display()
    ))
}

/// Asks a process to end; a paused one hears it only when it goes on.
fn stop(process: &timberline_workload::ProcessIdentity) -> Result<(), Failure> {
    process.terminate()?;
    process.resume()?;
    Ok(())
}

/// Waits until it has ended, and helps when that takes too long.
async fn end(process: &timberline_workload::ProcessIdentity) -> Result<(), Failure> {
    if !wait_down(process, STOP_PATIENCE).await {
        process.kill()?;
        wait_down(process, STOP_PATIENCE).await;
    }
    Ok(())
}

async fn wait_down(process: &timberline_workload::ProcessIdentity, patience: Duration) -> bool {
    let begun = Instant::now();
    while process.state() != ProcessState::Down {
        if begun.elapsed() > patience {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

fn open(dir: &Path) -> Result<(Locked, State), Failure> {
    // Without a cluster there is no directory to lock, and none is to be made.
    held(dir, read(dir)?)?;
    let locked = Locked::new(dir)?;
    let state = held(dir, locked.read()?)?;
    Ok((locked, state))
}

fn held(dir: &Path, state: Option<State>) -> Result<State, Failure> {
    state.ok_or_else(|| {
        Failure::failed(format!("there is no cluster in {}", dir.display()))
            .next("Name its directory with --dir, or start one with `timberline dev up`.")
    })
}

fn is_down(dir: &Path, id: i32) -> Failure {
    Failure::failed(format!("broker {id} is down")).next(format!(
        "Start it with `timberline dev restart {id} --dir {}`.",
        dir.display()
    ))
}
