use super::*;

fn read(text: &str) -> Result<Settings, SettingsError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    Settings::read(file.path())
}

#[test]
fn what_is_left_out_has_a_default() {
    let settings = read(r#"{"region": "eu-west-1", "quotas": {"images": 3}}"#).unwrap();
    assert_eq!(settings.region, "eu-west-1");
    assert_eq!(settings.quotas.images, 3);
    assert_eq!(settings.quotas.versions_per_image, 50);
}

#[test]
fn what_is_not_known_or_wrong_is_refused_by_name() {
    let cases = [
        (r#"{"quotas": {"imagse": 3}}"#, "imagse"),
        (r#"{"account": "12"}"#, "account"),
        (r#"{"region": "mars"}"#, "region"),
        (r#"{"rates": {"run": 0}}"#, "rates"),
        (r#"{"endpoint-domain": "a b"}"#, "endpoint-domain"),
        (r#"{"limits": {"streams": 0}}"#, "limits"),
        (r#"{"limits": {"head-seconds": 0}}"#, "limits"),
        (r#"{"certificate": {"chain": "a.pem"}}"#, "key"),
    ];
    for (text, name) in cases {
        refused(text, name);
    }
}

fn refused(text: &str, name: &str) {
    let error = read(text).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    let all = format!("{error}: {}", source.unwrap_or_default());
    assert!(all.contains(name), "{text}: {all}");
}

#[test]
fn a_subnet_has_a_subnets_name_and_a_policy_that_makes_sense() {
    let with = |networks: &str| {
        format!(
            r#"{{"host": {{"vmm": "a", "kernel": "b", "initramfs": "c", "networks": {networks}}}}}"#
        )
    };
    let settings = read(&with(r#"{"subnets": {"subnet-a1": {"allow": ["internet"]}}}"#)).unwrap();
    let networks = settings.host.unwrap().networks.unwrap();
    assert_eq!(networks.subnets["subnet-a1"], Policy::internet());
    let cases = [
        (r#"{"subnets": {"vpc-1": {}}}"#, "vpc-1"),
        (r#"{"subnets": {"subnet-": {}}}"#, "subnet-"),
        (r#"{"subnets": {"subnet-a": {"allow": ["10.1.0.0/8"]}}}"#, "10.0.0.0/8"),
        (r#"{"pool": 257}"#, "257"),
    ];
    for (networks, name) in cases {
        refused(&with(networks), name);
    }
}

#[test]
fn a_bucket_of_another_service_has_an_endpoint_with_tls_and_is_in_one_place() {
    let with = |bucket: &str, endpoint: &str, more: &str| {
        format!(
            r#"{{"host": {{"vmm": "a", "kernel": "b", "initramfs": "c", "code-directories": {{"local": "d"}},
                "code-endpoints": {{"{bucket}": {{"endpoint": "{endpoint}", "credentials-file": "k" {more}}}}}}}}}"#
        )
    };
    for endpoint in ["https://s3.example", "https://10.0.0.1:9000", "https://[::1]:9000"] {
        let host = read(&with("code", endpoint, r#", "ca": "ca.pem""#)).unwrap().host.unwrap();
        let code = &host.code_endpoints["code"];
        assert!(code.credentials_file.is_absolute() && code.ca.as_ref().unwrap().is_absolute());
    }
    for endpoint in [
        "http://s3.example",
        "s3.example",
        "https://",
        "https://s3.example/",
        "https://s3.example/minio",
        "https://s3.example?x",
        "https://s3.example#x",
        "https://me:secret@s3.example",
        "https://s3.example:99999",
    ] {
        refused(&with("code", endpoint, ""), "an endpoint is https");
    }
    for bucket in ["A-b", "ab", "-abc", "a..b", "a_b"] {
        refused(&with(bucket, "https://s3.example", ""), "name of a bucket");
    }
    refused(&with("local", "https://s3.example", ""), "host.code-directories");
    refused(&with("code", "https://s3.example", r#", "region": """#), "region");
    refused(&with("code", "https://s3.example", r#", "secret": "x""#), "secret");
}
