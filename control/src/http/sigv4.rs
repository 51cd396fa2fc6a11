//! Signature Version 4: the request is signed once more, as its sender says it was, and the two
//! signatures are compared.
//!
//! A signature that was overheard is good for [`SKEW_MAX_SECONDS`], and for the very same request
//! only: method, path, query, signed headers and body are all in it.

use std::sync::Arc;

use aws_credential_types::Credentials as SigningCredentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use hyper::header::{AUTHORIZATION, HeaderMap};
use subtle::ConstantTimeEq;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::answer::ServiceError;
use crate::clock::Timestamp;
use crate::sessions::{Session, Sessions, TOKEN_HEADER};
use crate::state::Credentials;

/// How far a request's time may be from ours.
pub const SKEW_MAX_SECONDS: i64 = 300;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// More headers than any client signs.
const SIGNED_HEADERS_MAX: usize = 64;

/// Verifies signatures with one access key, and with those of sessions.
#[derive(Clone)]
pub struct Verifier {
    credentials: Credentials,
    sessions: Option<Arc<Sessions>>,
}

/// What was received.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, as it came.
    pub path: &'a str,
    /// The query, as it came.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a [u8],
}

/// What a signature is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `us-east-1`
    pub region: String,
    /// `lambda`, `sts`, ...
    pub service: String,
    /// Whose session it is; nothing if it is the daemon's own key.
    pub session: Option<Session>,
}

/// The `Authorization` header.
#[derive(Debug)]
struct Authorization<'a> {
    access_key: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl Verifier {
    /// With this key.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, sessions: None }
    }

    /// And with the keys of sessions.
    pub fn with_sessions(self, sessions: &Arc<Sessions>) -> Self {
        Self { sessions: Some(Arc::clone(sessions)), ..self }
    }

    /// Who does not hold the key does not get past this.
    pub fn verify(&self, received: &Received<'_>, now: Timestamp) -> Result<Scope, ServiceError> {
        let Some(header) = received.headers.get(AUTHORIZATION) else {
            let text = "Missing Authentication Token";
            return Err(ServiceError::new(403, "MissingAuthenticationTokenException", text));
        };
        let header = header.to_str().map_err(|_| incomplete("it is not ASCII"))?;
        let authorization = Authorization::parse(header).map_err(incomplete)?;
        let (secret, session) = self.key(&authorization, received.headers)?;
        let time = signing_time(received.headers, authorization.date)?;
        check_skew(time, now)?;
        check_headers(received.headers, &authorization.signed_headers)?;
        let ours = sign_again(received, &authorization, &secret, time)?;
        if bool::from(ours.as_bytes().ct_eq(authorization.signature.as_bytes())) {
            let (region, service) = (authorization.region, authorization.service);
            Ok(Scope { region: region.into(), service: service.into(), session })
        } else {
            let text = "The request signature we calculated does not match the signature you \
                        provided. Check your AWS Secret Access Key and signing method. Consult \
                        the service documentation for details.";
            Err(invalid(text))
        }
    }

    /// The secret that an access key goes with, and whose it is.
    fn key(
        &self,
        authorization: &Authorization<'_>,
        headers: &HeaderMap,
    ) -> Result<(String, Option<Session>), ServiceError> {
        let access_key = authorization.access_key;
        match (headers.get(TOKEN_HEADER), &self.sessions) {
            (None, _) if access_key == self.credentials.access_key_id => {
                return Ok((self.credentials.secret_access_key.clone(), None));
            }
            (Some(token), Some(sessions)) if Sessions::is_one(access_key) => {
                let token = token.to_str().unwrap_or_default();
                if let Some(session) = sessions.verify(access_key, token) {
                    return Ok((sessions.secret(access_key), Some(session)));
                }
            }
            _ => {}
        }
        let text = "The security token included in the request is invalid.";
        Err(ServiceError::new(403, "UnrecognizedClientException", text))
    }
}

fn sign_again(
    received: &Received<'_>,
    authorization: &Authorization<'_>,
    secret: &str,
    time: OffsetDateTime,
) -> Result<String, ServiceError> {
    let failed = |_| invalid("The request cannot be signed as it says it was.");
    let identity = SigningCredentials::from_keys(authorization.access_key, secret, None).into();
    // The path that is signed is the one on the wire, encoded once more.
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Double;
    settings.payload_checksum_kind = PayloadChecksumKind::NoHeader;
    settings.excluded_headers = None;
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(authorization.region)
        .name(authorization.service)
        .time(time.into())
        .settings(settings)
        .build()
        .map_err(|_| invalid("The request cannot be signed as it says it was."))?
        .into();
    let mut headers = Vec::new();
    for name in &authorization.signed_headers {
        for value in received.headers.get_all(*name) {
            let text = value.to_str().map_err(|_| invalid("A signed header is not ASCII."))?;
            headers.push((*name, text));
        }
    }
    let uri = match received.query {
        "" => received.path.to_owned(),
        query => format!("{}?{query}", received.path),
    };
    let body = SignableBody::Bytes(received.body);
    let request = SignableRequest::new(received.method, uri, headers.into_iter(), body);
    let output = sign(request.map_err(failed)?, &params).map_err(failed)?;
    Ok(output.signature().to_owned())
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Result<Self, &'static str> {
        let rest = header.strip_prefix(ALGORITHM).ok_or("it is not of AWS4-HMAC-SHA256")?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            match part.trim().split_once('=') {
                Some(("Credential", value)) => credential = Some(value),
                Some(("SignedHeaders", value)) => signed_headers = Some(value),
                Some(("Signature", value)) => signature = Some(value),
                _ => return Err("it has a part that is none of the three"),
            }
        }
        let credential = credential.ok_or("it has no Credential")?;
        let signed_headers: Vec<&str> =
            signed_headers.ok_or("it has no SignedHeaders")?.split(';').collect();
        if signed_headers.len() > SIGNED_HEADERS_MAX {
            return Err("it has too many SignedHeaders");
        }
        let signature = signature.ok_or("it has no Signature")?;
        let mut scope = credential.split('/');
        let mut next = || scope.next().filter(|part| !part.is_empty());
        match (next(), next(), next(), next(), next(), next()) {
            (
                Some(access_key),
                Some(date),
                Some(region),
                Some(service),
                Some("aws4_request"),
                None,
            ) => Ok(Self { access_key, date, region, service, signed_headers, signature }),
            _ => Err("its Credential is not KEY/DATE/REGION/SERVICE/aws4_request"),
        }
    }
}

fn signing_time(headers: &HeaderMap, date: &str) -> Result<OffsetDateTime, ServiceError> {
    let text = headers.get("x-amz-date").and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| incomplete("there is no X-Amz-Date"))?;
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let time = PrimitiveDateTime::parse(text, format)
        .map_err(|_| incomplete("X-Amz-Date is not a time"))?;
    if text.split_once('T').is_none_or(|(day, _)| day != date) {
        return Err(invalid(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP.",
        ));
    }
    Ok(time.assume_utc())
}

fn check_skew(time: OffsetDateTime, now: Timestamp) -> Result<(), ServiceError> {
    let now = now.date_time();
    let seconds = (now - time).whole_seconds();
    if seconds > SKEW_MAX_SECONDS {
        return Err(invalid(format!(
            "Signature expired: {time} is more than 5 min. before {now}."
        )));
    }
    if seconds < -SKEW_MAX_SECONDS {
        let text = format!("Signature not yet current: {time} is more than 5 min. after {now}.");
        return Err(invalid(text));
    }
    Ok(())
}

/// What is not signed could have been changed on the way, so what matters has to be.
fn check_headers(headers: &HeaderMap, signed: &[&str]) -> Result<(), ServiceError> {
    let must = |name: &str| {
        if signed.contains(&name) {
            return Ok(());
        }
        Err(invalid(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")))
    };
    must("host")?;
    for name in headers.keys().map(hyper::header::HeaderName::as_str) {
        if name.starts_with("x-amz-") {
            must(name)?;
        }
    }
    match signed.iter().find(|name| !headers.contains_key(**name)) {
        Some(name) => Err(invalid(format!("The signed header '{name}' is not there."))),
        None => Ok(()),
    }
}

fn incomplete(what: &str) -> ServiceError {
    let text = format!("The Authorization header cannot be used: {what}.");
    ServiceError::new(403, "IncompleteSignatureException", text)
}

fn invalid(text: impl Into<String>) -> ServiceError {
    ServiceError::new(403, "InvalidSignatureException", text)
}

#[cfg(test)]
mod tests;
