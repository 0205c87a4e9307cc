//! Ports for brokers.
//!
//! A broker that is started again must find its port free. Ports that the system gives to outgoing connections are of no
//! use for that: while the broker is away a client may get its port, even by connecting to it, with itself at the other
//! end. So free ports are looked for below those.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where free ports are looked for: below the system's own, which begin at 32,768.
const PORTS: Range<u16> = 12_000..32_000;
/// Ports tried before giving up.
const TRIES_MAX: usize = 20_000;
/// The first broker's ports unless others are asked for.
pub const BASE_PORT: u16 = 7071;
/// From one broker's ports to the next one's.
const STEP: u16 = 10;

/// Where a broker listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAddresses {
    /// Clients' gRPC.
    pub grpc: SocketAddr,
    /// Other brokers.
    pub peer: SocketAddr,
    /// Probes and metrics.
    pub http: SocketAddr,
}

impl BrokerAddresses {
    /// Loopback ports that nobody listens on now. Somebody else may take them before the broker does.
    ///
    /// # Errors
    /// There is none left.
    pub fn free() -> Result<BrokerAddresses> {
        Ok(BrokerAddresses::free_of(1)?.remove(0))
    }

    /// As [`free`](Self::free), for so many brokers.
    ///
    /// # Errors
    /// There are not enough left.
    pub fn free_of(brokers: usize) -> Result<Vec<BrokerAddresses>> {
        // All are held until all are known, so that they differ.
        let mut held = Vec::new();
        let mut port = rand::rng().random_range(PORTS);
        for _ in 0..TRIES_MAX {
            if held.len() == 3 * brokers {
                break;
            }
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                held.push((listener, loopback(port)));
            }
            port = if port + 1 == PORTS.end {
                PORTS.start
            } else {
                port + 1
            };
        }
        if held.len() < 3 * brokers {
            return Err(Error::Invalid(
                "there are not enough free ports on 127.0.0.1".to_owned(),
            ));
        }
        let of = |three: &[(TcpListener, SocketAddr)]| BrokerAddresses {
            grpc: three[0].1,
            peer: three[1].1,
            http: three[2].1,
        };
        Ok(held.chunks_exact(3).map(of).collect())
    }

    /// Those of the `at`th broker (from 0) from a base on: gRPC, peers, HTTP, and ten further for each broker.
    ///
    /// # Errors
    /// [`Error::Invalid`]: beyond the last port.
    pub fn from_base(base: u16, at: usize) -> Result<BrokerAddresses> {
        let first = u16::try_from(at)
            .ok()
            .and_then(|at| at.checked_mul(STEP))
            .and_then(|step| base.checked_add(step))
            .filter(|first| *first > 0 && first.checked_add(2).is_some());
        let Some(first) = first else {
            return Err(Error::Invalid(format!(
                "with base port {base} the ports of broker {} are beyond 65535",
                at + 1
            )));
        };
        Ok(BrokerAddresses {
            grpc: loopback(first),
            peer: loopback(first + 1),
            http: loopback(first + 2),
        })
    }

    /// The first of these that somebody listens on, with what it is for.
    pub fn taken(&self) -> Option<(&'static str, SocketAddr)> {
        let all = [
            ("gRPC", self.grpc),
            ("peers", self.peer),
            ("HTTP", self.http),
        ];
        all.into_iter()
            .find(|(_, address)| TcpListener::bind(address).is_err())
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn free_ports_differ_and_lie_where_no_client_gets_them() {
        let found = BrokerAddresses::free_of(5).unwrap();
        let ports: BTreeSet<u16> = found
            .iter()
            .flat_map(|at| [at.grpc.port(), at.peer.port(), at.http.port()])
            .collect();
        assert_eq!(ports.len(), 15);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn ports_from_a_base_go_in_steps_of_ten() {
        let third = BrokerAddresses::from_base(BASE_PORT, 2).unwrap();
        let ports = [third.grpc, third.peer, third.http].map(|address| address.port());
        assert_eq!(ports, [7091, 7092, 7093]);
        assert!(BrokerAddresses::from_base(65_530, 0).is_ok());
        assert!(BrokerAddresses::from_base(65_530, 1).is_err());
        assert!(BrokerAddresses::from_base(1, 100_000).is_err());
    }

    #[test]
    fn a_port_in_use_is_found() {
        let mut addresses = BrokerAddresses::free().unwrap();
        assert_eq!(addresses.taken(), None);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        addresses.peer = listener.local_addr().unwrap();
        assert_eq!(addresses.taken(), Some(("peers", addresses.peer)));
    }
}
