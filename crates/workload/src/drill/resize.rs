//! A cluster that grows and shrinks under load: two brokers join, replicas move onto them, and two leave for good.

use std::time::{Duration, Instant};

use super::{
    CATCH_UP_PATIENCE, DrillEvent, Round, START_PATIENCE, STOP_PATIENCE, Stage, TOPIC, wait_done,
};
use crate::error::{Error, Result};
use crate::observer::LOOK_EVERY;

/// Brokers that join, and that leave.
const BROKERS: usize = 2;
/// How long the brokers may take to tell each other of an operation that is done.
const GONE_PATIENCE: Duration = Duration::from_secs(10);

impl Stage<'_> {
    /// One repetition. In odd ones the controller leaves and the oldest other broker, so that with the second one nobody is
    /// left of those that founded the cluster, whose addresses clients and brokers began with; in even ones the youngest.
    pub(super) async fn resize(
        &mut self,
        round: u64,
        tell: &mut (impl FnMut(DrillEvent) + Send),
    ) -> Result<Round> {
        self.load.gaps.begin();
        let leaving = match round % 2 {
            1 => Some(self.leaving().await?),
            _ => None,
        };
        let racks = match &leaving {
            Some(leaving) => self.racks_of(leaving),
            None => self.cluster.racks().into_iter().map(Some).collect(),
        };
        let grown = Instant::now();
        let joined = self.grow(&racks).await?;
        let (operation, moves) = self.client.admin().balance(false).await?;
        wait_done(&self.client, "the balancing", operation).await?;
        tell(DrillEvent::Grown {
            round,
            brokers: joined.clone(),
            moves: moves.len(),
            took: grown.elapsed(),
        });
        let founders_leave = leaving.is_some();
        let leaving = leaving.unwrap_or_else(|| joined.clone());
        let controller = self.observer.controller().await?;
        let shrunk = Instant::now();
        for &id in &leaving {
            self.dismiss(id).await?;
        }
        tell(DrillEvent::Shrunk {
            round,
            controller: controller.is_some_and(|id| leaving.contains(&id)),
            brokers: leaving,
            took: shrunk.elapsed(),
        });
        let left = Instant::now();
        if founders_leave {
            // Those that it was told of at first are gone: it must find the others by what it has learned.
            for &id in &joined {
                self.cluster.terminate(id, STOP_PATIENCE).await?;
                self.cluster.restart(id)?;
                self.cluster.process(id)?.wait_ready(START_PATIENCE).await?;
                self.wait_whole(CATCH_UP_PATIENCE).await?;
            }
        }
        self.wait_whole(CATCH_UP_PATIENCE).await?;
        let caught_up = left.elapsed();
        self.wait_acknowledged(Instant::now()).await?;
        Ok(Round {
            gaps: self.load.gaps.until(Instant::now()),
            last_leader: None,
            caught_up,
        })
    }

    /// The controller, and the oldest of the others.
    async fn leaving(&mut self) -> Result<Vec<i32>> {
        let controller = self.observer.controller().await?;
        let mut ids: Vec<_> = self.cluster.specs().map(|spec| spec.id).collect();
        ids.sort_by_key(|id| (Some(*id) != controller, *id));
        ids.truncate(BROKERS);
        Ok(ids)
    }

    fn racks_of(&self, ids: &[i32]) -> Vec<Option<String>> {
        let of = |id: &i32| self.cluster.specs().find(|spec| spec.id == *id);
        let racks = ids.iter().filter_map(of);
        racks.map(|spec| spec.rack.clone()).collect()
    }

    /// Brokers join, and all brokers know of them.
    async fn grow(&mut self, racks: &[Option<String>]) -> Result<Vec<i32>> {
        let mut joined = Vec::new();
        for at in 0..BROKERS {
            let rack = racks.get(at).cloned().flatten();
            joined.push(self.cluster.join(rack.as_deref())?);
        }
        self.cluster.wait_ready(START_PATIENCE).await?;
        let begun = Instant::now();
        loop {
            let known = self.client.cluster().await?;
            let live = known.brokers.iter().filter(|broker| broker.live).count();
            if live == self.cluster.specs().count() {
                return Ok(joined);
            }
            if begun.elapsed() > START_PATIENCE {
                return Err(Error::Invalid(format!(
                    "{live} brokers are live after {START_PATIENCE:?}, not {}",
                    self.cluster.specs().count()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A broker gives up what it has, stops, and is no member any more.
    async fn dismiss(&mut self, id: i32) -> Result<()> {
        let admin = self.client.admin();
        let operation = admin.decommission_broker(id, false).await?;
        wait_done(
            &self.client,
            &format!("the decommissioning of broker {id}"),
            operation,
        )
        .await?;
        self.wait_gone(id).await?;
        self.cluster.terminate(id, STOP_PATIENCE).await?;
        admin.remove_broker(id).await?;
        self.cluster.forget(id)
    }

    /// Nobody says any more that the broker has a replica.
    async fn wait_gone(&self, id: i32) -> Result<()> {
        let begun = Instant::now();
        loop {
            let topic = self.observer.look().await?;
            let mut partitions = topic.partitions.iter();
            if !partitions.any(|info| info.replicas.contains(&id) || info.leader_id == Some(id)) {
                return Ok(());
            }
            if begun.elapsed() > GONE_PATIENCE {
                return Err(Error::Invalid(format!(
                    "broker {id} is decommissioned and still has a part in {TOPIC}"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
