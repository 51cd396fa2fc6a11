//! What of a network device survives a suspend.

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};

use super::Net;

/// What the guest knows of its interface. Its link is up whenever anybody looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    pub(super) mac: [u8; 6],
    pub(super) mtu: Option<u16>,
}

impl Stateful for Net {
    const TAG: Tag = Tag { kind: *b"VNET", version: 1 };
    type State = NetState;

    fn save(&self) -> NetState {
        NetState { mac: self.mac.0, mtu: self.mtu }
    }

    /// The guest keeps the address it knows, whatever the configuration says; what it may send
    /// must be what it was told.
    fn load(&mut self, state: NetState) -> Result<(), LoadError> {
        let NetState { mac, mtu } = state;
        let invalid =
            |field, value, reason| LoadError::Invalid { tag: Self::TAG, field, value, reason };
        let Some(mac) = super::Mac::new(mac) else {
            return Err(invalid("mac", mac[0].into(), "a group's address"));
        };
        if mtu != self.mtu {
            let reason = "the interface of the configuration has another mtu";
            return Err(invalid("mtu", mtu.unwrap_or(0).into(), reason));
        }
        self.reset_for_driver();
        self.mac = mac;
        Ok(())
    }
}
