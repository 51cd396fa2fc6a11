use super::*;

/// What the AWS CLI sends, with an ARN in the path; signed by botocore 1.44.5.
const DATE: &str = "20261123T113456Z";

fn verifier() -> Verifier {
    Verifier::new(Credentials { access_key_id: "AKID".into(), secret_access_key: "secret".into() })
}

fn now() -> Timestamp {
    Timestamp(1_795_433_696_000)
}

struct Signed {
    path: &'static str,
    query: &'static str,
    headers: Vec<(&'static str, String)>,
    body: &'static [u8],
}

impl Signed {
    fn authorization(signature: &str, signed: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=AKID/20261123/us-east-1/lambda/aws4_request, \
             SignedHeaders={signed}, Signature={signature}"
        )
    }

    fn get() -> Self {
        let signature = SIGNATURE_OF_GET;
        Self {
            path: "/2025-09-09/microvm-images/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3Amine",
            query: "nextToken=a%2Bb%2Fc%3D%3D&maxResults=5",
            headers: vec![
                ("host", "127.0.0.1:8443".into()),
                ("x-amz-date", DATE.into()),
                ("authorization", Self::authorization(signature, "host;x-amz-date")),
            ],
            body: b"",
        }
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
    }

    fn verify_at(&self, now: Timestamp) -> Result<Scope, ServiceError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.insert(*name, value.parse().unwrap());
        }
        let received = Received {
            method: "GET",
            path: self.path,
            query: self.query,
            headers: &headers,
            body: self.body,
        };
        verifier().verify(&received, now)
    }

    fn refusal(&self) -> String {
        self.verify_at(now()).unwrap_err().to_string()
    }
}

/// Made with botocore 1.44.5 (`SigV4Auth`) for exactly this request.
const SIGNATURE_OF_GET: &str = "19b73d9dc02d85257200de37a5315f43db46896fc3ab615a9d5fed513a477eef";

#[test]
fn an_arn_in_the_path_is_signed_encoded_twice() {
    let scope = Signed::get().verify_at(now()).unwrap();
    assert_eq!(
        scope,
        Scope { region: "us-east-1".into(), service: "lambda".into(), session: None }
    );
}

#[test]
fn whatever_is_changed_spoils_the_signature() {
    let mut other = Signed::get();
    other.path = "/2025-09-09/microvm-images";
    assert!(other.refusal().contains("does not match"));
    let mut other = Signed::get();
    other.query = "maxResults=50";
    assert!(other.refusal().contains("does not match"));
    let mut other = Signed::get();
    other.body = b"x";
    assert!(other.refusal().contains("does not match"));
    let mut other = Signed::get();
    other.set("host", "127.0.0.1:8444");
    assert!(other.refusal().contains("does not match"));
}

#[test]
fn a_signature_is_good_for_five_minutes() {
    let signed = Signed::get();
    for (seconds, is_good) in [(-301, false), (-300, true), (300, true), (301, false)] {
        let result = signed.verify_at(now().plus_seconds(seconds));
        assert_eq!(result.is_ok(), is_good, "{seconds}: {result:?}");
    }
}

#[test]
fn headers_that_matter_have_to_be_signed() {
    let mut other = Signed::get();
    other.set("x-amz-target", "Logs_20140328.DeleteLogGroup");
    assert!(other.refusal().contains("'x-amz-target' must be a 'SignedHeader'"));
    let mut other = Signed::get();
    other.set("authorization", &Signed::authorization(SIGNATURE_OF_GET, "x-amz-date"));
    assert!(other.refusal().contains("'host' must be a 'SignedHeader'"));
    let mut other = Signed::get();
    other.set("authorization", &Signed::authorization(SIGNATURE_OF_GET, "host;range;x-amz-date"));
    assert!(other.refusal().contains("'range' is not there"));
}

#[test]
fn a_stranger_and_a_session_are_told_so() {
    let mut other = Signed::get();
    let theirs = Signed::authorization(SIGNATURE_OF_GET, "host;x-amz-date").replace("AKID", "AKIX");
    other.set("authorization", &theirs);
    assert!(other.refusal().starts_with("UnrecognizedClientException"));
    let mut other = Signed::get();
    other.set("x-amz-security-token", "t");
    assert!(other.refusal().starts_with("UnrecognizedClientException"));
    let mut other = Signed::get();
    other.headers.retain(|(name, _)| *name != "authorization");
    assert!(other.refusal().starts_with("MissingAuthenticationTokenException"));
}

#[test]
fn nonsense_is_refused_and_does_no_harm() {
    let headers = [
        "",
        "Bearer x",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=",
        "AWS4-HMAC-SHA256 ,,,=",
        "AWS4-HMAC-SHA256 Credential=AKID/20261123/us-east-1/lambda/aws4_request",
        "AWS4-HMAC-SHA256 Credential=AKID/2026/x/y, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=AKID/1/x/y/aws4_request, SignedHeaders=, Signature=",
        "AWS4-HMAC-SHA256 Credential=AKID/20261123/\u{7f}/y/aws4_request, SignedHeaders=;;, Signature=-",
    ];
    for header in headers {
        let mut other = Signed::get();
        other.headers.retain(|(name, _)| *name != "authorization");
        if header.parse::<hyper::header::HeaderValue>().is_ok() {
            other.set("authorization", header);
        }
        other.verify_at(now()).unwrap_err();
    }
    for date in ["", "20261123", "20269923T113456Z", "20261124T113456Z"] {
        let mut other = Signed::get();
        other.set("x-amz-date", date);
        other.verify_at(now()).unwrap_err();
    }
}
