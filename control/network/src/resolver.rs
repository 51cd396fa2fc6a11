//! The resolver of one guest: it asks the host's, and lets the guest reach what it answers.
//!
//! A guest under an allow-list reaches a name's addresses because *this* answered with them, and for
//! no longer than a bounded time; another resolver's answers, or numbers, open nothing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, RData, Record, RecordType},
};
use hickory_resolver::{
    TokioResolver,
    net::{DnsError, NetError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    files::Name,
    host::{self, Host, ResolverSockets},
    netlink,
    policy::Verdicts,
};

/// Questions of one guest that wait for an answer; one more gets SERVFAIL at once.
const IN_FLIGHT_MAX: usize = 64;
/// Questions of one guest, on average and at once; more are not answered, as if they were lost.
const QUESTIONS_PER_SECOND: u32 = 200;
const QUESTIONS_BURST: u32 = 400;
const TCP_CONNECTIONS_MAX: usize = 16;
const TCP_IDLE: Duration = Duration::from_secs(10);
const QUESTION_BYTES_MAX: usize = 2048;
/// What passes everywhere in one packet.
const UDP_ANSWER_BYTES_MAX: u16 = 1232;
const ANSWER_RECORDS_MAX: usize = 64;
/// A guest may use an address for as long as it was told, but for neither less nor more than this.
const PIN_MIN: Duration = Duration::from_secs(60);
const PIN_MAX: Duration = Duration::from_secs(3600);

/// Serves the guest of one namespace until it is dropped.
pub async fn serve(host: Host, slot: u32, upstream: TokioResolver, sockets: ResolverSockets) {
    let ResolverSockets { udp, tcp, rules } = sockets;
    let sockets = udp
        .set_nonblocking(true)
        .and_then(|()| tcp.set_nonblocking(true))
        .and_then(|()| Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?)));
    let (udp, tcp) = match sockets {
        Ok(sockets) => sockets,
        Err(error) => return tracing::error!(slot, %error, "cannot serve names"),
    };
    let guest = Arc::new(Guest {
        host,
        slot,
        upstream,
        rules: Mutex::new(rules),
        name: Mutex::new(None),
        in_flight: Semaphore::new(IN_FLIGHT_MAX),
        budget: Mutex::new(Budget::new(Instant::now())),
    });
    // Tasks end with the set, which ends with us.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_tcp(Arc::clone(&guest), tcp));
    serve_udp(&guest, Arc::new(udp)).await;
}

struct Guest {
    host: Host,
    slot: u32,
    upstream: TokioResolver,
    rules: Mutex<netlink::Socket>,
    /// Whose namespace it was last time.
    name: Mutex<Option<Name>>,
    in_flight: Semaphore,
    budget: Mutex<Budget>,
}

async fn serve_udp(guest: &Arc<Guest>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; QUESTION_BYTES_MAX];
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // A guest that does not listen any more is no reason to stop listening to it.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return tracing::error!(slot = guest.slot, %error, "cannot hear names"),
        };
        while tasks.try_join_next().is_some() {}
        let question = buffer.get(..length).unwrap_or_default().to_vec();
        let (guest, socket) = (Arc::clone(guest), Arc::clone(&socket));
        if tasks.len() < 2 * IN_FLIGHT_MAX {
            tasks.spawn(async move { answer_udp(&guest, &socket, &question, from).await });
        }
    }
}

async fn answer_udp(guest: &Arc<Guest>, socket: &UdpSocket, question: &[u8], from: SocketAddr) {
    let Some((message, payload_max)) = guest.answer(question).await else { return };
    let size_max = usize::from(payload_max.min(UDP_ANSWER_BYTES_MAX));
    let whole = message.to_vec().unwrap_or_default();
    let bytes = if whole.len() > size_max {
        message.truncate().to_vec().unwrap_or_default()
    } else {
        whole
    };
    if let Err(error) = socket.send_to(&bytes, from).await {
        tracing::debug!(slot = guest.slot, %error, "an answer was not sent");
    }
}

async fn serve_tcp(guest: Arc<Guest>, listener: TcpListener) {
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        while tasks.len() >= TCP_CONNECTIONS_MAX {
            tasks.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let guest = Arc::clone(&guest);
                tasks.spawn(async move { converse(&guest, stream).await });
            }
            Err(error) => {
                tracing::debug!(slot = guest.slot, %error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// One question after the other, each with its length before it (RFC 1035, section 4.2.2).
async fn converse(guest: &Arc<Guest>, mut stream: TcpStream) -> Option<()> {
    loop {
        let mut length = [0; 2];
        timeout(TCP_IDLE, stream.read_exact(&mut length)).await.ok()?.ok()?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > QUESTION_BYTES_MAX {
            return None;
        }
        let mut question = vec![0; length];
        timeout(TCP_IDLE, stream.read_exact(&mut question)).await.ok()?.ok()?;
        let (message, _) = guest.answer(&question).await?;
        let bytes = message.to_vec().ok()?;
        let length = u16::try_from(bytes.len()).ok()?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(TCP_IDLE, stream.write_all(&framed)).await.ok()?.ok()?;
    }
}

impl Guest {
    /// The answer to a question, and how long it may be; none to what is none.
    async fn answer(self: &Arc<Self>, question: &[u8]) -> Option<(Message, u16)> {
        if !lock(&self.budget).spend(Instant::now()) {
            return None;
        }
        let question = Message::from_vec(question).ok()?;
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = reply_to(&question);
        answer.metadata.response_code = match self.records(&question).await {
            Ok(Records { answers, authorities, code }) => {
                answer.add_answers(answers);
                answer.add_authorities(authorities);
                code
            }
            Err(code) => code,
        };
        Some((answer, question.max_payload()))
    }

    async fn records(self: &Arc<Self>, question: &Message) -> Result<Records, ResponseCode> {
        let _permit = self.in_flight.try_acquire().map_err(|_| ResponseCode::ServFail)?;
        let query = single_query(question)?;
        let name = query.name.to_ascii();
        let verdicts = self.blocking(|guest| guest.verdicts()).await?;
        let Some(verdicts) = verdicts else { return Err(ResponseCode::Refused) };
        match judge(&query, &name, &verdicts) {
            Judgement::Refuse(code) => Err(code),
            Judgement::Nothing => Ok(Records::default()),
            Judgement::Ask => {
                let found = self.upstream.lookup(query.name.clone(), query.query_type).await;
                let records = match found {
                    Ok(lookup) => lookup.answers().to_vec(),
                    Err(error) => return negative(error),
                };
                self.admit(name, records).await
            }
        }
    }

    /// Leaves of an answer what the guest may have, and lets the guest reach it.
    async fn admit(
        self: &Arc<Self>,
        name: String,
        mut records: Vec<Record>,
    ) -> Result<Records, ResponseCode> {
        records.truncate(ANSWER_RECORDS_MAX);
        let addresses: Vec<Ipv4Addr> = records.iter().filter_map(address_of).collect();
        if addresses.is_empty() {
            return Ok(Records { answers: records, ..Records::default() });
        }
        let pin = bound(shortest(&records));
        let allowed = self.blocking(move |guest| guest.pin(&name, &addresses, pin)).await?;
        records.retain(|record| address_of(record).is_none_or(|a| allowed.contains(&a)));
        if allowed.is_empty() {
            return Err(ResponseCode::Refused);
        }
        let ttl_max = u32::try_from(PIN_MAX.as_secs()).unwrap_or(u32::MAX);
        for record in &mut records {
            record.ttl = record.ttl.min(ttl_max);
        }
        Ok(Records { answers: records, ..Records::default() })
    }

    /// What the policy says now. A namespace of the pool is nobody's, and has no policy.
    fn verdicts(&self) -> Result<Option<Verdicts>, host::Error> {
        let Some(name) = self.name()? else { return Ok(None) };
        let Some(record) = self.host.files().record(&name)? else { return Ok(None) };
        Ok(Some(self.host.verdicts(&record.policy)?))
    }

    fn pin(
        &self,
        domain: &str,
        addresses: &[Ipv4Addr],
        time: Duration,
    ) -> Result<Vec<Ipv4Addr>, host::Error> {
        let Some(name) = self.name()? else { return Ok(Vec::new()) };
        let timeout_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.host.pin(&name, &mut lock(&self.rules), domain, addresses, timeout_ms)
    }

    fn name(&self) -> Result<Option<Name>, host::Error> {
        let mut known = lock(&self.name);
        if let Some(name) = &*known
            && self.host.files().record(name)?.is_some_and(|record| record.slot == self.slot)
        {
            return Ok(known.clone());
        }
        *known = self.host.name_of(self.slot)?;
        Ok(known.clone())
    }

    /// Files and the kernel are asked on another thread.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, host::Error> + Send + 'static,
    ) -> Result<T, ResponseCode> {
        let guest = Arc::clone(self);
        let done = spawn_blocking(move || work(&guest)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::debug!(slot = self.slot, %error, cause, "a name is not answered");
                Err(ResponseCode::ServFail)
            }
            Err(_) => Err(ResponseCode::ServFail),
        }
    }
}

#[derive(Debug, Default)]
struct Records {
    answers: Vec<Record>,
    authorities: Vec<Record>,
    code: ResponseCode,
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Ask,
    /// The name may exist, and has no such record.
    Nothing,
    Refuse(ResponseCode),
}

/// What becomes of a question.
fn judge(query: &Query, name: &str, verdicts: &Verdicts) -> Judgement {
    use RecordType::{A, AAAA, CAA, CNAME, HTTPS, MX, NAPTR, NS, PTR, SOA, SRV, SVCB, TXT};
    if query.query_class != DNSClass::IN || !verdicts.allows_name(name) {
        return Judgement::Refuse(ResponseCode::Refused);
    }
    match query.query_type {
        // The guest has no IPv6: it need not try.
        AAAA => Judgement::Nothing,
        A | CAA | CNAME | HTTPS | MX | NAPTR | NS | PTR | SOA | SRV | SVCB | TXT => Judgement::Ask,
        _ => Judgement::Refuse(ResponseCode::NotImp),
    }
}

fn single_query(question: &Message) -> Result<Query, ResponseCode> {
    if question.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    match question.queries.as_slice() {
        [query] => {
            let mut query = query.clone();
            query.name.set_fqdn(true);
            Ok(query)
        }
        _ => Err(ResponseCode::FormErr),
    }
}

fn reply_to(question: &Message) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().take(1).cloned());
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_ANSWER_BYTES_MAX);
        answer.set_edns(edns);
    }
    answer
}

/// What the host's resolver says in place of records.
fn negative(error: NetError) -> Result<Records, ResponseCode> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(nothing)) => {
            let soa = nothing.soa.map(|soa| soa.into_record_of_rdata());
            let authorities = soa.into_iter().collect();
            Ok(Records { authorities, code: nothing.response_code, ..Records::default() })
        }
        NetError::Dns(DnsError::ResponseCode(code)) => Err(code),
        _ => Err(ResponseCode::ServFail),
    }
}

fn address_of(record: &Record) -> Option<Ipv4Addr> {
    match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    }
}

fn shortest(records: &[Record]) -> Duration {
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    Duration::from_secs(ttl.into())
}

fn bound(ttl: Duration) -> Duration {
    ttl.clamp(PIN_MIN, PIN_MAX)
}

/// How many questions a guest may ask now: a bucket that fills at a steady rate.
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(at: Instant) -> Self {
        Self { left: QUESTIONS_BURST.into(), at }
    }

    fn spend(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64();
        let filled = self.left + earned * f64::from(QUESTIONS_PER_SECOND);
        self.left = filled.min(QUESTIONS_BURST.into());
        self.at = now;
        let has_one = self.left >= 1.0;
        if has_one {
            self.left -= 1.0;
        }
        has_one
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name as DnsName;

    use super::*;
    use crate::{policy::Policy, ranges::Ranges};

    fn judged(policy: &str, name: &str, kind: RecordType) -> Judgement {
        let verdicts = Policy::parse(policy).unwrap().verdicts(&Ranges::default());
        let query = Query::query(DnsName::from_ascii(name).unwrap(), kind);
        judge(&query, name, &verdicts)
    }

    #[test]
    fn only_names_of_the_policy_are_asked_for() {
        let policy = r#"{"allow": ["example.org", "203.0.113.0/24"]}"#;
        assert_eq!(judged(policy, "example.org.", RecordType::A), Judgement::Ask);
        let refused = Judgement::Refuse(ResponseCode::Refused);
        assert_eq!(judged(policy, "evil.test.", RecordType::TXT), refused);
        assert_eq!(judged("{}", "example.org.", RecordType::A), refused);
        assert_eq!(
            judged(r#"{"allow": ["internet"]}"#, "evil.test.", RecordType::TXT),
            Judgement::Ask
        );
    }

    #[test]
    fn no_guest_is_sent_to_an_ipv6_address() {
        let policy = r#"{"allow": ["internet"]}"#;
        assert_eq!(judged(policy, "example.org.", RecordType::AAAA), Judgement::Nothing);
        let refused = Judgement::Refuse(ResponseCode::NotImp);
        assert_eq!(judged(policy, "example.org.", RecordType::ANY), refused);
    }

    #[test]
    fn a_question_that_is_none_or_two_is_malformed() {
        let mut message = Message::query();
        assert_eq!(single_query(&message).unwrap_err(), ResponseCode::FormErr);
        let query = Query::query(DnsName::from_ascii("a.test.").unwrap(), RecordType::A);
        message.add_query(query.clone());
        assert_eq!(single_query(&message).unwrap(), query);
        message.add_query(query);
        assert_eq!(single_query(&message).unwrap_err(), ResponseCode::FormErr);
    }

    #[test]
    fn a_pin_lasts_neither_a_moment_nor_for_ever() {
        assert_eq!(bound(Duration::ZERO), PIN_MIN);
        assert_eq!(bound(Duration::from_secs(300)), Duration::from_secs(300));
        assert_eq!(bound(Duration::from_secs(u32::MAX.into())), PIN_MAX);
    }

    #[test]
    fn a_guest_asks_no_faster_than_its_budget() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let asked = |budget: &mut Budget, at| (0..1000).filter(|_| budget.spend(at)).count();
        assert_eq!(asked(&mut budget, start), 400);
        assert_eq!(asked(&mut budget, start + Duration::from_secs(1)), 200);
        assert_eq!(asked(&mut budget, start + Duration::from_secs(60)), 400);
    }
}
