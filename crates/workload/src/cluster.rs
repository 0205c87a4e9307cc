//! A cluster of brokers in processes of their own, on loopback.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use timberline_client::{Client, ClientOptions, ClusterInfo};

use crate::error::{Error, Result};
use crate::identity::ProcessIdentity;
use crate::ports::BrokerAddresses;
use crate::process::{BrokerProcess, BrokerSpec, probe_options};

/// Between two looks whether the cluster is ready.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Brokers of a cluster on one machine, at most.
pub const BROKERS_MAX: usize = 64;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The `timberline` program.
    pub program: PathBuf,
    /// Logs and data go here, each broker's below `broker-N`.
    pub dir: PathBuf,
    /// Number of brokers.
    pub brokers: usize,
    /// Failure domains, dealt out to the brokers in turn; none: no racks.
    pub racks: Vec<String>,
    /// The first port; `None`: free ones.
    pub base_port: Option<u16>,
    /// More flags of every `timberline server`.
    pub flags: Vec<String>,
}

impl ClusterOptions {
    /// So many brokers, each in a rack of its own (a, b, c, …), on free ports.
    pub fn new(program: impl Into<PathBuf>, dir: impl Into<PathBuf>, brokers: usize) -> Self {
        let racks = ('a'..='z').take(brokers.min(26));
        ClusterOptions {
            program: program.into(),
            dir: dir.into(),
            brokers,
            racks: racks.map(String::from).collect(),
            base_port: None,
            flags: Vec::new(),
        }
    }

    /// How each broker is to be started, by their numbers from 1.
    ///
    /// # Errors
    /// [`Error::Invalid`]: no brokers, too many, more racks than brokers, or ports beyond the last.
    pub fn plan(&self) -> Result<Vec<BrokerSpec>> {
        if self.brokers == 0 || self.brokers > BROKERS_MAX {
            return Err(Error::Invalid(format!(
                "a cluster on one machine has 1 to {BROKERS_MAX} brokers, not {}",
                self.brokers
            )));
        }
        if self.racks.len() > self.brokers {
            return Err(Error::Invalid(format!(
                "{} racks for {} brokers: a rack would be empty",
                self.racks.len(),
                self.brokers
            )));
        }
        let addresses = match self.base_port {
            Some(base) => (0..self.brokers)
                .map(|at| BrokerAddresses::from_base(base, at))
                .collect::<Result<Vec<_>>>()?,
            None => BrokerAddresses::free_of(self.brokers)?,
        };
        Ok(plan(&self.dir, &addresses, &self.racks, &self.flags))
    }
}

/// Brokers over these addresses. A cluster of one has no seeds.
fn plan(
    dir: &Path,
    addresses: &[BrokerAddresses],
    racks: &[String],
    flags: &[String],
) -> Vec<BrokerSpec> {
    let seeds: Vec<_> = match addresses {
        [_] => Vec::new(),
        all => all.iter().map(|addresses| addresses.peer).collect(),
    };
    let spec = |(at, addresses): (usize, &BrokerAddresses)| {
        let home = dir.join(format!("broker-{}", at + 1));
        BrokerSpec {
            id: at as i32 + 1,
            rack: racks.get(at % racks.len().max(1)).cloned(),
            seeds: seeds.clone(),
            addresses: *addresses,
            data_dir: home.join("data"),
            log: home.join("log"),
            flags: flags.to_vec(),
        }
    };
    addresses.iter().enumerate().map(spec).collect()
}

/// Running brokers. Dropped, they are killed.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    brokers: Vec<Member>,
    /// The highest number that one ever had: numbers are not given twice.
    last_id: i32,
}

#[derive(Debug)]
struct Member {
    spec: BrokerSpec,
    /// `None` while it is away.
    process: Option<BrokerProcess>,
}

impl Cluster {
    /// Starts all brokers; they may not be ready yet.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Io`].
    pub fn start(options: &ClusterOptions) -> Result<Cluster> {
        Cluster::start_all(&options.program, options.plan()?)
    }

    /// Starts brokers that are described one by one.
    ///
    /// # Errors
    /// [`Error::Io`]; those already started are killed then.
    pub fn start_all(program: &Path, specs: Vec<BrokerSpec>) -> Result<Cluster> {
        let mut cluster = Cluster {
            program: program.to_owned(),
            brokers: Vec::new(),
            last_id: 0,
        };
        for spec in specs {
            cluster.start_one(spec)?;
        }
        Ok(cluster)
    }

    /// Waits until every broker that is not away answers, knows all others, and knows who leads the metadata.
    ///
    /// # Errors
    /// [`Error::Process`]: a broker ended, or it took too long.
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<ClusterInfo> {
        let begun = Instant::now();
        let all = self.brokers.len();
        let mut known = None;
        for member in &mut self.brokers {
            let Some(process) = &mut member.process else {
                continue;
            };
            loop {
                let not_yet = match look(&member.spec).await {
                    Ok(info) if info.brokers.len() < all => {
                        format!("it knows {} of {all} brokers", info.brokers.len())
                    }
                    Ok(info) if info.controller_id.is_none() => {
                        "it knows nobody who leads the metadata".to_owned()
                    }
                    Ok(info) => {
                        known = Some(info);
                        break;
                    }
                    Err(error) => error.to_string(),
                };
                process.check_alive()?;
                if begun.elapsed() > patience {
                    let what = format!(
                        "broker {} is not ready after {patience:?}: {not_yet}",
                        member.spec.id
                    );
                    return Err(process.failed(what));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        known.ok_or_else(|| Error::Invalid("no broker is there".to_owned()))
    }

    /// All clients' addresses, separated by commas.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<_> = self
            .specs()
            .map(|spec| spec.addresses.grpc.to_string())
            .collect();
        addresses.join(",")
    }

    /// Options of a client that knows all brokers.
    pub fn client_options(&self) -> ClientOptions {
        ClientOptions::default().bootstrap([self.bootstrap()])
    }

    /// How the brokers were started, by their numbers.
    pub fn specs(&self) -> impl Iterator<Item = &BrokerSpec> {
        self.brokers.iter().map(|member| &member.spec)
    }

    /// Numbers of the brokers of a rack.
    pub fn of_rack(&self, rack: &str) -> Vec<i32> {
        let of_rack = |spec: &&BrokerSpec| spec.rack.as_deref() == Some(rack);
        self.specs().filter(of_rack).map(|spec| spec.id).collect()
    }

    /// The racks, each once, in the order of the brokers.
    pub fn racks(&self) -> Vec<String> {
        let mut racks = Vec::new();
        for rack in self.specs().filter_map(|spec| spec.rack.clone()) {
            if !racks.contains(&rack) {
                racks.push(rack);
            }
        }
        racks
    }

    /// The process of a broker that is not away.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is none.
    pub fn process(&mut self, id: i32) -> Result<&mut BrokerProcess> {
        self.member(id)?
            .process
            .as_mut()
            .ok_or_else(|| Error::Invalid(format!("broker {id} is away")))
    }

    /// Kills a broker; it is away then.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it is away, or there is none of this number. [`Error::Io`].
    pub fn kill(&mut self, id: i32) -> Result<()> {
        self.process(id)?.kill()?;
        self.member(id)?.process = None;
        Ok(())
    }

    /// Stops a broker with SIGTERM; it is away then. Returns how long it took.
    ///
    /// # Errors
    /// As [`kill`](Self::kill), and [`Error::Process`].
    pub async fn terminate(&mut self, id: i32, patience: Duration) -> Result<Duration> {
        let stopped = self.process(id)?.terminate(patience).await;
        self.member(id)?.process = None;
        stopped
    }

    /// Starts a broker that is away, as it was started before.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it is not away, or there is none of this number. [`Error::Io`].
    pub fn restart(&mut self, id: i32) -> Result<()> {
        let program = self.program.clone();
        let member = self.member(id)?;
        if member.process.is_some() {
            return Err(Error::Invalid(format!("broker {id} is not away")));
        }
        member.process = Some(member.spec.start(&program)?);
        Ok(())
    }

    /// Starts one more broker, which joins those that are there; returns its number. It gets a number that none had
    /// before, a directory beside theirs, and those that are not away as its seeds.
    ///
    /// # Errors
    /// [`Error::Invalid`]: nobody is there to be joined, or no port is free. [`Error::Io`].
    pub fn join(&mut self, rack: Option<&str>) -> Result<i32> {
        let nobody = || Error::Invalid("no broker is there to be joined".to_owned());
        let seeds: Vec<_> = self
            .running()
            .map(|(spec, _)| spec.addresses.peer)
            .collect();
        let (first, _) = self.running().next().ok_or_else(nobody)?;
        let homes = first.log.parent().and_then(Path::parent);
        let id = self.last_id + 1;
        let home = homes.ok_or_else(nobody)?.join(format!("broker-{id}"));
        let spec = BrokerSpec {
            id,
            rack: rack.map(str::to_owned),
            seeds,
            addresses: BrokerAddresses::free()?,
            data_dir: home.join("data"),
            log: home.join("log"),
            flags: first.flags.clone(),
        };
        self.start_one(spec)?;
        Ok(id)
    }

    /// Forgets a broker that has left the cluster; one that still runs is killed.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is none of this number.
    pub fn forget(&mut self, id: i32) -> Result<()> {
        self.member(id)?;
        self.brokers.retain(|member| member.spec.id != id);
        Ok(())
    }

    fn start_one(&mut self, spec: BrokerSpec) -> Result<()> {
        if let Some(home) = spec.log.parent() {
            std::fs::create_dir_all(home)
                .map_err(Error::io(format!("making {}", home.display())))?;
        }
        let process = Some(spec.start(&self.program)?);
        self.last_id = self.last_id.max(spec.id);
        self.brokers.push(Member { spec, process });
        Ok(())
    }

    /// Finds a broker that ended though nobody ended it.
    ///
    /// # Errors
    /// [`Error::Process`].
    pub fn check_alive(&mut self) -> Result<()> {
        self.brokers
            .iter_mut()
            .filter_map(|member| member.process.as_mut())
            .try_for_each(BrokerProcess::check_alive)
    }

    /// The brokers that are not away, and which processes they are.
    pub fn running(&self) -> impl Iterator<Item = (&BrokerSpec, &ProcessIdentity)> {
        let running = self.brokers.iter();
        running.filter_map(|member| Some((&member.spec, member.process.as_ref()?.identity())))
    }

    /// Leaves the brokers running, with how each was started; those that are away are left out.
    pub fn leave(self) -> Vec<(BrokerSpec, ProcessIdentity)> {
        let left = self.brokers.into_iter();
        left.filter_map(|member| Some((member.spec, member.process?.leave())))
            .collect()
    }

    fn member(&mut self, id: i32) -> Result<&mut Member> {
        let found = self.brokers.iter_mut().find(|member| member.spec.id == id);
        found.ok_or_else(|| Error::Invalid(format!("there is no broker {id}")))
    }
}

/// Who is in the cluster, as this broker sees it.
async fn look(spec: &BrokerSpec) -> Result<ClusterInfo> {
    let client = Client::connect(probe_options(spec.addresses.grpc)).await?;
    Ok(client.cluster().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(brokers: usize, racks: &[&str]) -> ClusterOptions {
        ClusterOptions {
            racks: racks.iter().map(|rack| (*rack).to_owned()).collect(),
            base_port: Some(7071),
            ..ClusterOptions::new("timberline", "dir", brokers)
        }
    }

    #[test]
    fn three_brokers_stand_in_three_racks_and_know_the_same_seeds() {
        let specs = options(3, &["a", "b", "c"]).plan().unwrap();
        let racks: Vec<_> = specs.iter().map(|spec| spec.rack.as_deref()).collect();
        assert_eq!(racks, [Some("a"), Some("b"), Some("c")]);
        assert!(specs.iter().all(|spec| spec.seeds == specs[0].seeds));
        let peers: Vec<_> = specs.iter().map(|spec| spec.addresses.peer).collect();
        assert_eq!(specs[0].seeds, peers);
        assert_eq!(specs[2].data_dir, Path::new("dir/broker-3/data"));
    }

    #[test]
    fn racks_are_dealt_out_in_turn_or_not_at_all() {
        let specs = options(5, &["a", "b"]).plan().unwrap();
        let racks: Vec<_> = specs.iter().filter_map(|spec| spec.rack.clone()).collect();
        assert_eq!(racks, ["a", "b", "a", "b", "a"]);
        assert!(
            options(2, &[])
                .plan()
                .unwrap()
                .iter()
                .all(|spec| spec.rack.is_none())
        );
        assert!(options(2, &["a", "b", "c"]).plan().is_err());
    }

    #[test]
    fn one_broker_is_a_cluster_without_seeds_and_none_is_no_cluster() {
        assert!(options(1, &["a"]).plan().unwrap()[0].seeds.is_empty());
        assert!(options(0, &[]).plan().is_err());
        assert!(options(BROKERS_MAX + 1, &[]).plan().is_err());
    }
}
