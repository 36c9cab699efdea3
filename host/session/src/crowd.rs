//! How many of a listener's places one address may take up before it has shown who it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// The part of an address that one stranger can't choose freely: an IPv4 address, or the /64 of an IPv6 address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[derive(Debug, Default)]
struct Count {
    /// Places that it has now.
    places: usize,
    /// Whether it was said that it wants more than it may have.
    told: bool,
}

/// Who has how many places. It holds no more addresses than there are places.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    most: usize,
    counts: Arc<Mutex<HashMap<IpAddr, Count>>>,
}

/// Why an address gets no further place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowded {
    /// Whether this is the first one turned away since the address had none: later ones need no words.
    pub(crate) first: bool,
}

impl Crowd {
    /// At most `most` places an address.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            counts: Arc::default(),
        }
    }

    /// A place for a connection from this address, until it is dropped.
    pub(crate) fn enter(&self, address: IpAddr) -> Result<CrowdPlace, Crowded> {
        let network = network(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_default();
        if count.places >= self.most {
            let first = !std::mem::replace(&mut count.told, true);
            return Err(Crowded { first });
        }
        count.places += 1;
        drop(counts);
        Ok(CrowdPlace {
            crowd: self.clone(),
            network,
        })
    }
}

/// One address's place.
#[derive(Debug)]
pub(crate) struct CrowdPlace {
    crowd: Crowd,
    network: IpAddr,
}

impl Drop for CrowdPlace {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.network) {
            count.places -= 1;
            if count.places == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_places_and_no_more_and_others_have_theirs() {
        let crowd = Crowd::new(2);
        let first = crowd.enter(ip("192.0.2.1")).unwrap();
        let _second = crowd.enter(ip("192.0.2.1")).unwrap();
        assert_eq!(crowd.enter(ip("192.0.2.1")).unwrap_err(), Crowded { first: true });
        assert_eq!(crowd.enter(ip("192.0.2.1")).unwrap_err(), Crowded { first: false });
        assert!(crowd.enter(ip("192.0.2.2")).is_ok());
        drop(first);
        assert!(crowd.enter(ip("192.0.2.1")).is_ok());
    }

    #[test]
    fn an_address_in_other_clothes_is_the_same_one() {
        let crowd = Crowd::new(1);
        let _mapped = crowd.enter(ip("::ffff:192.0.2.1")).unwrap();
        assert!(crowd.enter(ip("192.0.2.1")).is_err());
        let _host = crowd.enter(ip("2001:db8:1:2::1")).unwrap();
        assert!(crowd.enter(ip("2001:db8:1:2:ffff::9")).is_err());
        assert!(crowd.enter(ip("2001:db8:1:3::1")).is_ok());
    }

    #[test]
    fn nothing_is_remembered_of_who_has_left() {
        let crowd = Crowd::new(1);
        for last in 0..200_u8 {
            drop(crowd.enter(IpAddr::from([10, 0, 0, last])));
        }
        assert!(crowd.counts.lock().unwrap().is_empty());
    }
}
