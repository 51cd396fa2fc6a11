//! The parts that nf_tables rules are made of, by the names of `linux/netfilter/nf_tables.h`.
//!
//! A rule is a list of expressions over registers: a match loads something and compares it, and the
//! rule goes on only if it holds; the last expression says what becomes of the packet.

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_APPEND, NLM_F_CREATE, NlaBuffer};
use netlink_packet_netfilter::{
    NetfilterMessageInner, NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainFlags, ChainMessage, Cmp, DataAttribute, Expressions, Hook,
        HookNumber, Immediate, ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator,
        Payload, Register, RuleAttribute, RuleMessage, SetAttribute, SetDescription,
        SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage, SetFlags,
        SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
    },
};

use crate::netlink::{self, Step};

/// What every match loads into, and compares.
const REGISTER: Register = Register::Reg32_00;
/// Reads a family's set and its answers' headers: `struct nfgenmsg`.
const NFGENMSG_BYTES: usize = 4;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
/// In `NFTA_PAYLOAD_BASE`.
const BASES: [u32; 3] = [0, 1, 2];

/// Where a header that is looked at begins.
#[derive(Clone, Copy)]
pub enum Base {
    /// Ethernet.
    Link = 0,
    /// IPv4 or ARP.
    Network = 1,
    /// TCP, UDP, ICMP.
    Transport = 2,
}

/// A table, by its family and name.
#[derive(Clone, Copy)]
pub struct Table {
    /// Which packets.
    pub family: NetfilterProtoFamily,
    /// Its name.
    pub name: &'static str,
}

/// A chain that the kernel itself calls.
pub struct BaseChain {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// When.
    pub hook: HookNumber,
    /// In which order among others.
    pub priority: i32,
    /// Whether what no rule decides goes on.
    pub accepts: bool,
    /// For a hook of a device.
    pub device: Option<&'static str>,
}

/// A set's shape.
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// For people who list it: nftables' number of the type.
    pub key_type: u32,
    /// A key's length.
    pub key_bytes: u32,
    /// What it can do.
    pub flags: SetFlags,
    /// How many elements it may have.
    pub elements_max: u32,
    /// How long an element stays unless it says otherwise.
    pub timeout_ms: Option<u64>,
}

/// One element.
pub struct Element {
    /// In network order, as packets have it.
    pub key: Vec<u8>,
    /// It is the first one after a range, rather than the first of one.
    pub ends_range: bool,
    /// How long it stays.
    pub timeout_ms: Option<u64>,
    /// Ours to read back.
    pub note: Option<String>,
}

/// An element as the kernel has it.
#[derive(Debug, Default)]
pub struct Known {
    /// As it was added.
    pub key: Vec<u8>,
    /// How long it will stay.
    pub expires_ms: Option<u64>,
    /// What was noted.
    pub note: Option<String>,
    /// Packets and bytes, if it counts.
    pub counter: Option<(u64, u64)>,
}

impl Table {
    /// Adds it, unless it is there.
    pub fn add(self) -> Step {
        let attributes = vec![TableAttribute::Name(self.name.into())];
        self.step(NLM_F_CREATE, NfTablesMessage::NewTable(TableMessage { attributes }))
    }

    /// Removes it with all it holds. It must be there.
    pub fn delete(self) -> Step {
        let attributes = vec![TableAttribute::Name(self.name.into())];
        self.step(0, NfTablesMessage::DeleteTable(TableMessage { attributes }))
    }

    /// Adds a chain that rules jump to, or the kernel.
    pub fn add_chain(self, name: &str, base: Option<&BaseChain>) -> Step {
        let mut attributes =
            vec![ChainAttribute::Table(self.name.into()), ChainAttribute::Name(name.into())];
        if let Some(base) = base {
            let priority = u32::from_ne_bytes(base.priority.to_ne_bytes());
            let mut hook = vec![Hook::Number(base.hook), Hook::Priority(priority)];
            hook.extend(base.device.map(|device| Hook::NetDeviceName(device.into())));
            attributes.push(ChainAttribute::Hook(hook));
            let policy = if base.accepts { VERDICT_ACCEPT } else { VERDICT_DROP };
            attributes.push(ChainAttribute::Policy(policy));
            attributes.push(ChainAttribute::Type(base.kind.into()));
            attributes.push(ChainAttribute::Flags(ChainFlags::Base));
        }
        self.step(NLM_F_CREATE, NfTablesMessage::NewChain(ChainMessage { attributes }))
    }

    /// Appends a rule.
    pub fn add_rule(self, chain: &str, rule: Rule) -> Step {
        let attributes = vec![
            RuleAttribute::Table(self.name.into()),
            RuleAttribute::Chain(chain.into()),
            RuleAttribute::Expressions(rule.0.into_iter().map(ListAttribute::from).collect()),
        ];
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        self.step(flags, NfTablesMessage::NewRule(RuleMessage { attributes }))
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(self, chain: &str) -> Step {
        let attributes =
            vec![RuleAttribute::Table(self.name.into()), RuleAttribute::Chain(chain.into())];
        self.step(0, NfTablesMessage::DeleteRule(RuleMessage { attributes }))
    }

    /// Adds a set. `id` tells the sets of one transaction apart.
    pub fn add_set(self, set: &Set, id: u32) -> Step {
        let mut attributes = vec![
            SetAttribute::Table(self.name.into()),
            SetAttribute::Name(set.name.into()),
            SetAttribute::Flags(set.flags),
            SetAttribute::KeyType(set.key_type),
            SetAttribute::KeyLen(set.key_bytes),
            SetAttribute::Id(id),
            SetAttribute::Description(vec![SetDescription::Size(set.elements_max)]),
        ];
        attributes.extend(set.timeout_ms.map(SetAttribute::Timeout));
        self.step(NLM_F_CREATE, NfTablesMessage::NewSet(SetMessage { attributes }))
    }

    /// Adds elements. A set of ranges takes the first of each and the first after it.
    pub fn add_elements(self, set: &str, elements: Vec<Element>) -> Step {
        let list = elements.into_iter().map(|element| {
            let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(element.key))];
            if element.ends_range {
                attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
            }
            attributes.extend(element.timeout_ms.map(SetElementAttribute::Timeout));
            attributes
                .extend(element.note.map(|note| SetElementAttribute::UserData(comment(&note))));
            ListAttribute::Element(attributes)
        });
        let message = self.elements(set, Some(list.collect()));
        self.step(NLM_F_CREATE, NfTablesMessage::NewSetElement(message))
    }

    /// Removes elements that are there.
    pub fn delete_elements(self, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) -> Step {
        let list = keys.into_iter().map(|key| {
            ListAttribute::Element(vec![SetElementAttribute::Key(DataAttribute::Value(key))])
        });
        let message = self.elements(set, Some(list.collect()));
        self.step(0, NfTablesMessage::DeleteSetElement(message))
    }

    /// Removes all elements.
    pub fn flush_set(self, set: &str) -> Step {
        let message = self.elements(set, None);
        self.step(0, NfTablesMessage::DeleteSetElement(message))
    }

    /// What is in a set now.
    pub fn list_elements(
        self,
        socket: &mut netlink::Socket,
        set: &str,
    ) -> Result<Vec<Known>, netlink::Error> {
        use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage};
        let inner = NfTablesMessage::GetSetElement(self.elements(set, None));
        let message = NetfilterMessage::new(NetfilterHeader::new(self.family, 0, 0), inner);
        let what = format!("list the elements of {set} in the rule set {}", self.name);
        let answers = socket.dump(&what, &message, NFGENMSG_BYTES)?;
        Ok(answers.iter().flat_map(|answer| parse_elements(answer)).collect())
    }

    /// How many rules it has in the namespace of the socket: none if it is not there.
    pub fn count_rules(self, socket: &mut netlink::Socket) -> Result<usize, netlink::Error> {
        use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage};
        let attributes = vec![RuleAttribute::Table(self.name.into())];
        let inner = NfTablesMessage::GetRule(RuleMessage { attributes });
        let message = NetfilterMessage::new(NetfilterHeader::new(self.family, 0, 0), inner);
        let what = format!("list the rules of {}", self.name);
        match socket.dump(&what, &message, NFGENMSG_BYTES) {
            Ok(rules) => Ok(rules.len()),
            Err(error) if error.is_not_found() => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn elements(
        self,
        set: &str,
        list: Option<Vec<ListAttribute<SetElementAttribute>>>,
    ) -> SetElementMessage {
        let mut attributes =
            vec![SetElementList::Table(self.name.into()), SetElementList::Set(set.into())];
        attributes.extend(list.map(SetElementList::Elements));
        SetElementMessage { attributes }
    }

    fn step(self, flags: u16, message: NfTablesMessage) -> Step {
        (flags, self.family, NetfilterMessageInner::NfTables(message))
    }
}

/// A rule under construction: matches first, then what to do.
#[derive(Default)]
pub struct Rule(Vec<Expressions>);

impl Rule {
    /// A rule that holds for every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Packets that came in through this interface; a prefix if it ends in `*`.
    pub fn comes_through(self, name: &str) -> Self {
        self.meta(MetaKey::Iifname).equals(&interface(name))
    }

    /// Packets that go out through this interface; a prefix if it ends in `*`.
    pub fn leaves_through(self, name: &str) -> Self {
        self.meta(MetaKey::Oifname).equals(&interface(name))
    }

    /// Packets that go out through any other interface.
    pub fn leaves_not_through(self, name: &str) -> Self {
        self.meta(MetaKey::Oifname).differs(&interface(name))
    }

    /// IPv4, or everything but it.
    pub fn ipv4(self, wanted: bool) -> Self {
        let family = [u8::from(NetfilterProtoFamily::IPv4)];
        let loaded = self.meta(MetaKey::Nfproto);
        if wanted { loaded.equals(&family) } else { loaded.differs(&family) }
    }

    /// Packets of this transport protocol.
    pub fn protocol(self, number: u8) -> Self {
        self.meta(MetaKey::L4Proto).equals(&[number])
    }

    /// Bytes of a header.
    pub fn header(self, base: Base, offset: u32, value: &[u8]) -> Self {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.load_header(base, offset, length, REGISTER).equals(value)
    }

    /// An address of a header that is in a set.
    pub fn header_in_set(self, base: Base, offset: u32, length: u32, set: &str) -> Self {
        let lookup = vec![Lookup::Set(set.into()), Lookup::SourceRegister(REGISTER)];
        self.load_header(base, offset, length, REGISTER).with(Expressions::Lookup(lookup))
    }

    /// An address of a header that is outside of a network.
    pub fn header_outside(self, base: Base, offset: u32, value: [u8; 4], mask: [u8; 4]) -> Self {
        self.load_header(base, offset, 4, REGISTER).masked(&mask).differs(&value)
    }

    /// An address of a header that is in a network.
    pub fn header_within(self, base: Base, offset: u32, value: [u8; 4], mask: [u8; 4]) -> Self {
        self.load_header(base, offset, 4, REGISTER).masked(&mask).equals(&value)
    }

    /// The connection has one of these bits of a property set.
    pub fn connection_has(self, key: u32, bits: u32) -> Self {
        self.connection(key).masked(&bits.to_ne_bytes()).differs(&[0; 4])
    }

    /// The connection's mark.
    pub fn marked(self, mark: u32) -> Self {
        self.connection(CT_MARK).equals(&mark.to_ne_bytes())
    }

    /// Marks the connection.
    pub fn set_mark(self, mark: u32) -> Self {
        let attributes = vec![u32_attribute(2, CT_MARK), u32_attribute(4, REGISTER.into())];
        self.immediate(REGISTER, &mark.to_ne_bytes()).with(other("ct", attributes))
    }

    /// Not more often than this.
    pub fn at_most_per_second(self, rate: u64, burst: u32) -> Self {
        let attributes = vec![
            DefaultNla::new(1, rate.to_be_bytes().to_vec()),
            DefaultNla::new(2, 1u64.to_be_bytes().to_vec()),
            u32_attribute(3, burst),
            u32_attribute(4, 0),
        ];
        self.with(other("limit", attributes))
    }

    /// Counts the packet in an element that is a constant.
    pub fn count(self, set: &str, key: u32) -> Self {
        self.immediate(REGISTER, &key.to_be_bytes()).update(set)
    }

    /// Counts the packet in the element of its destination: address, protocol, port.
    pub fn count_destination(self, set: &str, has_port: bool) -> Self {
        let loaded =
            self.load_header(Base::Network, 16, 4, REGISTER).with(Expressions::Meta(vec![
                Meta::DestinationRegister(Register::Reg32_01),
                Meta::Key(MetaKey::L4Proto),
            ]));
        let with_port = if has_port {
            loaded.load_header(Base::Transport, 2, 2, Register::Reg32_02)
        } else {
            loaded.immediate(Register::Reg32_02, &[0; 2])
        };
        with_port.update(set)
    }

    /// The packet goes on.
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Other(VERDICT_ACCEPT), None)
    }

    /// The packet goes no further.
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Other(VERDICT_DROP), None)
    }

    /// Another chain decides.
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto, Some(chain))
    }

    /// The sender is told that the connection is reset.
    pub fn reject_with_reset(self) -> Self {
        self.with(other("reject", vec![u32_attribute(1, 1), DefaultNla::new(2, vec![0])]))
    }

    /// The sender is told that it is forbidden to reach this.
    pub fn reject(self) -> Self {
        let (icmpx, admin_prohibited) = (2, 3);
        let code = DefaultNla::new(2, vec![admin_prohibited]);
        self.with(other("reject", vec![u32_attribute(1, icmpx), code]))
    }

    /// The packet gets the address of the interface through which it goes out.
    pub fn masquerade(self) -> Self {
        self.with(other("masq", Vec::new()))
    }

    fn meta(self, key: MetaKey) -> Self {
        self.with(Expressions::Meta(vec![Meta::DestinationRegister(REGISTER), Meta::Key(key)]))
    }

    fn connection(self, key: u32) -> Self {
        self.with(other("ct", vec![u32_attribute(1, REGISTER.into()), u32_attribute(2, key)]))
    }

    fn load_header(self, base: Base, offset: u32, length: u32, to: Register) -> Self {
        let base = BASES.get(base as usize).copied().unwrap_or_default();
        self.with(Expressions::Payload(vec![
            Payload::DestinationRegister(to),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ]))
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.with(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(length),
            Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ]))
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(Operator::Equal, value)
    }

    fn differs(self, value: &[u8]) -> Self {
        self.compare(Operator::NotEqual, value)
    }

    fn compare(self, operator: Operator, value: &[u8]) -> Self {
        self.with(Expressions::Cmp(vec![
            Cmp::SourceRegister(REGISTER),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value.to_vec())),
        ]))
    }

    fn immediate(self, to: Register, value: &[u8]) -> Self {
        self.with(Expressions::Immediate(vec![
            Immediate::DestinationRegister(to),
            Immediate::Data(DataAttribute::Value(value.to_vec())),
        ]))
    }

    /// `update @set { what is loaded counter }`
    fn update(self, set: &str) -> Self {
        let name = |text: &str| [text.as_bytes(), &[0]].concat();
        let mut counter = vec![0; DefaultNla::new(1, name("counter")).buffer_len()];
        DefaultNla::new(1, name("counter")).emit(&mut counter);
        let update = 1;
        let nested = 0x8000;
        self.with(other(
            "dynset",
            vec![
                DefaultNla::new(1, name(set)),
                u32_attribute(3, update),
                u32_attribute(4, REGISTER.into()),
                DefaultNla::new(7 | nested, counter),
            ],
        ))
    }

    fn verdict(self, verdict: Verdict, chain: Option<&str>) -> Self {
        let mut attributes = vec![VerdictAttribute::Code(verdict)];
        attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.into())));
        self.with(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(attributes)),
        ]))
    }

    fn with(mut self, expression: Expressions) -> Self {
        self.0.push(expression);
        self
    }
}

/// Properties of a connection, for [`Rule::connection_has`].
pub const CT_STATE: u32 = 0;
/// Whether it has addresses translated, among others.
pub const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
/// Bits of [`CT_STATE`].
pub const INVALID: u32 = 1;
/// It has seen packets in both directions.
pub const ESTABLISHED: u32 = 2;
/// It is about another one that is.
pub const RELATED: u32 = 4;
/// Its first packet.
pub const NEW: u32 = 8;
/// A bit of [`CT_STATUS`]: its destination was translated.
pub const DESTINATION_TRANSLATED: u32 = 1 << 5;

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.into(), attributes }
}

fn u32_attribute(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// As the kernel compares it: the whole field with its zeroes, or a prefix without.
fn interface(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => {
            let mut field = name.as_bytes().to_vec();
            field.resize(16, 0);
            field
        }
    }
}

/// A comment as the tool `nft` writes it, so that it lists it.
fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(250).chain([0]).collect();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[0, length][..], &text].concat()
}

fn parse_elements(answer: &[u8]) -> Vec<Known> {
    let (list, element) = (3, 1);
    let Some(elements) = netlink::attribute(answer, list) else { return Vec::new() };
    let mut known = Vec::new();
    let mut rest = elements.as_slice();
    while let Ok(buffer) = NlaBuffer::new_checked(&rest) {
        if buffer.kind() & 0x3fff == element {
            known.push(parse_element(buffer.value()));
        }
        let length = usize::from(buffer.length()).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    known
}

fn parse_element(bytes: &[u8]) -> Known {
    let value = |kind| netlink::attribute(bytes, kind);
    let number = |kind| Some(u64::from_be_bytes(*value(kind)?.first_chunk()?));
    let key = value(1).and_then(|data| netlink::attribute(&data, 1)).unwrap_or_default();
    let note = value(6).and_then(|bytes| {
        let text = bytes.get(2..)?.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    });
    let counter = value(7).and_then(|expression| {
        let data = netlink::attribute(&expression, 2)?;
        let number =
            |kind| Some(u64::from_be_bytes(*netlink::attribute(&data, kind)?.first_chunk()?));
        Some((number(2)?, number(1)?))
    });
    Known { key, expires_ms: number(5), note, counter }
}
