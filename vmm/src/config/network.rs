//! `network-interfaces`: taps of the host.

use std::time::Duration;

use rotifer_devices::rate_limiter::{Change, Changes, REFILL_TIME_MAX, Rate};
use rotifer_devices::virtio::net::{Limits, MTU_MIN, Mac, MacError, Options, Tap};

use super::Error;
use super::document::{NetworkInterface, NetworkInterfacePatch, RateLimiter, TokenBucket};
use super::drive::check_id;

/// How many network interfaces a machine may have.
pub const INTERFACES_MAX: usize = 8;
/// The longest packet that any link carries.
const MTU_MAX: u16 = u16::MAX;

/// A network interface, checked, with its tap attached.
#[derive(Debug)]
pub struct Network {
    /// The name the API uses.
    pub id: String,
    /// This machine's alone.
    pub tap: Tap,
    /// Address, MTU, limits.
    pub options: Options,
}

impl NetworkInterface {
    /// Checks what does not need the tap; `index` is its place in `network-interfaces`.
    fn check(&self, index: usize) -> Result<Options, Error> {
        let at = |field: &str| format!("network-interfaces[{index}].{field}");
        check_id(&self.iface_id, &at("iface_id"))?;
        let mac = self.guest_mac.as_ref().map(|text| {
            text.parse().map_err(|error: MacError| {
                let remedy = "write it as 06:00:AC:10:00:02, or leave the key out";
                Error::invalid(at("guest_mac"), text, error.to_string(), remedy)
            })
        });
        let mtu = self.mtu.map(|mtu| {
            let fits = u16::try_from(mtu).ok().filter(|mtu| *mtu >= MTU_MIN);
            let reason = format!("an interface carries packets of {MTU_MIN} to {MTU_MAX} bytes");
            fits.ok_or_else(|| {
                Error::invalid(at("mtu"), mtu, reason, "choose a number in this range")
            })
        });
        Ok(Options {
            mac: mac.transpose()?,
            mtu: mtu.transpose()?,
            limits: Limits {
                receive: changes(self.rx_rate_limiter.as_ref(), &at("rx_rate_limiter"))?,
                transmit: changes(self.tx_rate_limiter.as_ref(), &at("tx_rate_limiter"))?,
            },
        })
    }

    /// Checks the section and attaches to its tap.
    pub(super) fn open(&self, index: usize) -> Result<Network, Error> {
        let options = self.check(index)?;
        let path = format!("network-interfaces[{index}].host_dev_name");
        let tap = Tap::open(&self.host_dev_name).map_err(|source| Error::Tap { path, source })?;
        Ok(Network { id: self.iface_id.clone(), tap, options })
    }

    /// The section with a patch applied, and what becomes of its limits.
    pub(crate) fn patched(&self, patch: &NetworkInterfacePatch) -> Result<(Self, Limits), Error> {
        let at = |field: &str| format!("network-interfaces/{}.{field}", self.iface_id);
        let limits = Limits {
            receive: changes(patch.rx_rate_limiter.as_ref(), &at("rx_rate_limiter"))?,
            transmit: changes(patch.tx_rate_limiter.as_ref(), &at("tx_rate_limiter"))?,
        };
        let rx_rate_limiter = merged(self.rx_rate_limiter.as_ref(), patch.rx_rate_limiter.as_ref());
        let tx_rate_limiter = merged(self.tx_rate_limiter.as_ref(), patch.tx_rate_limiter.as_ref());
        Ok((Self { rx_rate_limiter, tx_rate_limiter, ..self.clone() }, limits))
    }
}

/// Checks the interfaces together, and the one at `index` by itself.
pub(crate) fn check_interfaces(interfaces: &[NetworkInterface], index: usize) -> Result<(), Error> {
    check_together(interfaces)?;
    interfaces.get(index).map_or(Ok(()), |interface| interface.open(index).map(drop))
}

/// Checks what concerns the interfaces together: their number, and that none has what is
/// another's.
pub(super) fn check_together(interfaces: &[NetworkInterface]) -> Result<(), Error> {
    if interfaces.len() > INTERFACES_MAX {
        let reason = format!("a machine has at most {INTERFACES_MAX} network interfaces");
        return Err(Error::invalid("network-interfaces", interfaces.len(), reason, "remove some"));
    }
    let mac = |interface: &NetworkInterface| interface.guest_mac.as_ref()?.parse::<Mac>().ok();
    for (index, interface) in interfaces.iter().enumerate() {
        for (first, other) in interfaces[..index].iter().enumerate() {
            let same = [
                ("iface_id", interface.iface_id == other.iface_id),
                ("host_dev_name", interface.host_dev_name == other.host_dev_name),
                ("guest_mac", mac(interface).is_some() && mac(interface) == mac(other)),
            ];
            if let Some((field, _)) = same.iter().find(|(_, is_same)| *is_same) {
                return Err(Error::invalid(
                    format!("network-interfaces[{index}].{field}"),
                    &interface.iface_id,
                    format!("network-interfaces[{first}] has the same"),
                    "give each interface one of its own",
                ));
            }
        }
    }
    Ok(())
}

/// What a rate limiter asks for. A bucket of which a number is zero limits nothing, as with
/// Firecracker; one that is absent stays as it was.
fn changes(limiter: Option<&RateLimiter>, path: &str) -> Result<Changes, Error> {
    let change = |bucket: Option<&TokenBucket>, name: &str| {
        let Some(bucket) = bucket else { return Ok(Change::Keep) };
        let refill_time = Duration::from_millis(bucket.refill_time);
        if refill_time > REFILL_TIME_MAX {
            return Err(Error::invalid(
                format!("{path}.{name}.refill_time"),
                bucket.refill_time,
                format!("a bucket is full after at most {} ms", REFILL_TIME_MAX.as_millis()),
                "choose a smaller bucket that is full sooner",
            ));
        }
        let rate = Rate::new(bucket.size, bucket.one_time_burst.unwrap_or(0), refill_time);
        Ok(rate.map_or(Change::Lift, Change::Limit))
    };
    let Some(limiter) = limiter else { return Ok(Changes::default()) };
    Ok(Changes {
        bandwidth: change(limiter.bandwidth.as_ref(), "bandwidth")?,
        ops: change(limiter.ops.as_ref(), "ops")?,
    })
}

fn merged(old: Option<&RateLimiter>, patch: Option<&RateLimiter>) -> Option<RateLimiter> {
    let merge = |part: fn(&RateLimiter) -> &Option<TokenBucket>| {
        let new = patch.and_then(|patch| part(patch).clone());
        new.or_else(|| old.and_then(|old| part(old).clone()))
            .filter(|bucket| bucket.size > 0 && bucket.refill_time > 0)
    };
    let bandwidth = merge(|limiter| &limiter.bandwidth);
    let ops = merge(|limiter| &limiter.ops);
    (bandwidth.is_some() || ops.is_some()).then_some(RateLimiter { bandwidth, ops })
}
