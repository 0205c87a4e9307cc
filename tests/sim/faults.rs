//! What goes wrong from outside: crashes, power, partitions, pauses, and disks that are slow, full or fail.

use std::path::Path;

use timberline_storage::disk::{Disk, fault::Fault};

use crate::broker::DIR;
use crate::checker::Check;
use crate::life::End;
use crate::world::{Event, World};

impl World {
    pub(crate) fn fault(&mut self) -> Check {
        if self.calm {
            return Ok(());
        }
        let pause = self.rng.within(1, self.profile.fault_ms * 2);
        self.after(pause, Event::Fault);
        let mut broker = self.rng.below(self.brokers.len() as u64) as usize;
        let group = self.rng.below(self.groups.len() as u64) as usize;
        if self.rng.chance(50)
            && let Some((leaders, _)) = self.leader(group)
        {
            // It hurts more where somebody leads.
            broker = leaders;
        }
        let faults = self.profile.faults;
        match self.rng.weighted(&faults) {
            0 => self.crash(broker, Some(End::Kill)),
            1 => self.crash(broker, Some(End::PowerLoss)),
            2 => self.all_lose_power(),
            3 => self.cut_off(broker),
            4 => self.cut_links(),
            5 => self.light_fuse(broker),
            6 => self.slow_disk(broker),
            7 => self.failing_disk(broker),
            8 => self.full_disk(broker),
            9 => self.pause(broker),
            _ => self.stop(broker),
        }
    }

    fn all_lose_power(&mut self) -> Check {
        self.stats.power_losses_of_all += 1;
        for broker in 0..self.brokers.len() {
            self.crash(broker, Some(End::PowerLoss))?;
        }
        Ok(())
    }

    fn heal_later(&mut self) {
        let whole = self.rng.pick(&[100, 800, 3_000]);
        let delay = self.rng.within(1, whole);
        self.after(delay, Event::Heal);
    }

    /// A broker hears nothing, is not heard, or both.
    fn cut_off(&mut self, broker: usize) -> Check {
        let way = self.rng.below(3);
        for other in 0..self.brokers.len() {
            if way != 1 {
                self.network.block(broker, other);
            }
            if way != 0 {
                self.network.block(other, broker);
            }
        }
        match way {
            2 => self.stats.partitions += 1,
            _ => self.stats.one_way_partitions += 1,
        }
        let now = self.now;
        self.trace.note(now, ("cut off", broker, way), || {
            format!("b{broker} is cut off, way {way}")
        });
        self.heal_later();
        Ok(())
    }

    /// Any directed links.
    fn cut_links(&mut self) -> Check {
        let percent = self.rng.pick(&[15, 40]);
        for from in 0..self.brokers.len() {
            for to in 0..self.brokers.len() {
                if from != to && self.rng.chance(percent) {
                    self.network.block(from, to);
                }
            }
        }
        self.stats.one_way_partitions += 1;
        let now = self.now;
        self.trace.note(now, "cut links", || {
            format!("links are cut: {:?}", self.network)
        });
        self.heal_later();
        Ok(())
    }

    /// The disk stops by itself, in the middle of whatever it does.
    fn light_fuse(&mut self, broker: usize) -> Check {
        if self.brokers[broker].running.is_some() && self.profile.fuse > 0 {
            let ops = self.rng.below(60);
            self.stats.fuses += 1;
            self.brokers[broker].disk.crash_after(ops);
        }
        Ok(())
    }

    fn slow_disk(&mut self, broker: usize) -> Check {
        self.stats.slow_disks += 1;
        self.brokers[broker].slow_until = self.now + self.rng.within(200, 3_000);
        Ok(())
    }

    fn failing_disk(&mut self, broker: usize) -> Check {
        let part = self
            .rng
            .pick(&["journal", "journal", ".seg", "table", "logs"]);
        let fault = self.rng.pick(&[
            Fault::SyncError,
            Fault::SyncError,
            Fault::SyncFull,
            Fault::WriteError,
        ]);
        let skip = self.rng.below(4);
        self.brokers[broker].disk.inject(fault, part, skip);
        let now = self.now;
        self.trace.note(now, ("failing", broker, part, skip), || {
            format!("b{broker}: {fault:?} at {part} after {skip}")
        });
        Ok(())
    }

    fn full_disk(&mut self, broker: usize) -> Check {
        let dir = Path::new(DIR);
        let at = &mut self.brokers[broker];
        let (Ok(total), Ok(free)) = (at.disk.total_bytes(dir), at.disk.free_bytes(dir)) else {
            return Ok(());
        };
        if at.full {
            return Ok(());
        }
        let spare = self.rng.pick(&[0, 4_096, 30_000]);
        at.disk.set_capacity(Some(total - free + spare));
        at.full = true;
        self.stats.full_disks += 1;
        let now = self.now;
        self.trace.note(now, ("full", broker), || {
            format!("b{broker}: full but for {spare}")
        });
        let delay = self.rng.within(100, 2_000);
        self.after(delay, Event::Free(broker));
        Ok(())
    }

    /// The process stands still, and goes on as if nothing had been.
    fn pause(&mut self, broker: usize) -> Check {
        if self.brokers[broker].running.is_some() {
            self.stats.pauses += 1;
            self.brokers[broker].paused_until = self.now + self.rng.within(100, 2_500);
            let now = self.now;
            let until = self.brokers[broker].paused_until;
            self.trace.note(now, ("pause", broker), || {
                format!("b{broker} stands still until {until}")
            });
        }
        Ok(())
    }
}
