//! Sets of IPv4 addresses, as the policy reckons with them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Ranges from first to last address, in order, that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// Every address there is.
    pub fn all() -> Self {
        Self(vec![(0, u32::MAX)])
    }

    /// The union of networks.
    pub fn of<'a>(networks: impl IntoIterator<Item = &'a Ipv4Net>) -> Self {
        let bounds = |net: &Ipv4Net| (u32::from(net.network()), u32::from(net.broadcast()));
        Self::normalise(networks.into_iter().map(bounds).collect())
    }

    /// What is in either.
    pub fn union(&self, other: &Self) -> Self {
        Self::normalise(self.0.iter().chain(&other.0).copied().collect())
    }

    /// What is in this and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for &(first, last) in &self.0 {
            // The next address that nothing has been said about, beyond 32 bits at the very end.
            let mut next = u64::from(first);
            for &(gone_first, gone_last) in &other.0 {
                if gone_last < first || gone_first > last {
                    continue;
                }
                if u64::from(gone_first) > next {
                    left.push((low(next), gone_first - 1));
                }
                next = u64::from(gone_last) + 1;
            }
            if next <= u64::from(last) {
                left.push((low(next), last));
            }
        }
        Self(left)
    }

    /// Whether the address is in the set.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        self.0.iter().any(|&(first, last)| (first..=last).contains(&address))
    }

    /// First and last address of each range.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }

    fn normalise(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, known)) if u64::from(first) <= u64::from(*known) + 1 => {
                    *known = last.max(*known);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

/// A value that is known to fit.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn neighbours_become_one_range() {
        let ranges = Ranges::of(&networks(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25"]));
        assert_eq!(ranges, Ranges::of(&networks(&["10.0.0.0/23"])));
    }

    #[test]
    fn nothing_is_left_of_everything() {
        assert_eq!(Ranges::all().without(&Ranges::all()), Ranges::default());
        let halves = networks(&["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(Ranges::of(&halves), Ranges::all());
    }

    /// Networks close to one another, so that they meet.
    fn near() -> impl Strategy<Value = Vec<Ipv4Net>> {
        let network = (0u32..64, 26u8..=32)
            .prop_map(|(low, prefix)| Ipv4Net::new_assert(Ipv4Addr::from(low), prefix));
        proptest::collection::vec(network, 0..6)
    }

    proptest! {
        #[test]
        fn sets_agree_with_their_members(plus in near(), more in near(), minus in near()) {
            let set = Ranges::of(&plus).union(&Ranges::of(&more)).without(&Ranges::of(&minus));
            for address in (0..80).chain([u32::MAX]).map(Ipv4Addr::from) {
                let is_in = |list: &[Ipv4Net]| list.iter().any(|net| net.contains(&address));
                let wanted = (is_in(&plus) || is_in(&more)) && !is_in(&minus);
                prop_assert_eq!(set.contains(address), wanted, "{}", address);
            }
            let apart = set.0.windows(2).all(|pair| u64::from(pair[0].1) + 1 < u64::from(pair[1].0));
            prop_assert!(apart, "{:?}", set);
        }
    }
}
