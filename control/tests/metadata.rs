//! The credentials of an execution role: from inside of a microVM to our own S3 and STS.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{Vm, World, python, sees, within};

const ROLE: &str = "arn:aws:iam::000000000000:role/Run";

/// What a guest hears when it says something to the metadata service.
async fn hear(world: &World, vm: &Vm, request: &str, headers: &str) -> (u16, String) {
    let (mut guest, host) = tokio::io::duplex(4096);
    tokio::spawn(Arc::clone(&world.front.metadata).serve(host, vm.id.clone()));
    let said = format!(
        "{request} HTTP/1.1\r\nhost: 169.254.169.254\r\nconnection: close\r\n{headers}\r\n"
    );
    guest.write_all(said.as_bytes()).await.unwrap();
    let mut heard = String::new();
    within(guest.read_to_string(&mut heard)).await.unwrap();
    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_its_roles_credentials_and_they_are_good_for_what_the_role_may() {
    let world = World::new().await;
    let with_role = json!({ "executionRoleArn": ROLE });
    let (vm, other) = (world.vm(with_role).await, world.vm(json!({})).await);
    let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    for (headers, status) in [
        ("", 400),
        ("x-aws-ec2-metadata-token-ttl-seconds: 21601\r\n", 400),
        ("x-aws-ec2-metadata-token-ttl-seconds: 60\r\nx-forwarded-for: 1.2.3.4\r\n", 403),
    ] {
        assert_eq!(hear(&world, &vm, "PUT /latest/api/token", headers).await.0, status);
    }
    let (status, token) = hear(&world, &vm, "PUT /latest/api/token", ttl).await;
    assert_eq!(status, 200);
    let token = format!("x-aws-ec2-metadata-token: {token}\r\n");
    const LIST: &str = "GET /latest/meta-data/iam/security-credentials/";
    let role = format!("{LIST}execution_role");
    assert_eq!(hear(&world, &vm, &role, "").await.0, 401);
    assert_eq!(hear(&world, &other, &role, &token).await.0, 401, "another guest's token");
    assert_eq!(hear(&world, &vm, &role, &token).await.0, 404, "there is no such role yet");
    world.iam("Action=CreateRole&Version=2010-05-08&RoleName=Run&AssumeRolePolicyDocument=%7B%7D");
    world.iam(
        "Action=AttachRolePolicy&Version=2010-05-08&RoleName=Run\
         &PolicyArn=arn%3Aaws%3Aiam%3A%3Aaws%3Apolicy%2FAmazonS3ReadOnlyAccess",
    );
    assert_eq!(hear(&world, &vm, LIST, &token).await, (200, "execution_role".into()));
    let (_, foreign) = hear(&world, &other, "PUT /latest/api/token", ttl).await;
    let foreign = format!("x-aws-ec2-metadata-token: {foreign}\r\n");
    assert_eq!(hear(&world, &other, LIST, &foreign).await.0, 404, "it has no role");
    let (status, shown) = hear(&world, &vm, &role, &token).await;
    assert_eq!(status, 200);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let text = |name: &str| shown[name].as_str().unwrap().to_owned();
    assert_eq!((text("Code").as_str(), text("Type").as_str()), ("Success", "AWS-HMAC"));
    let session = ["AccessKeyId", "SecretAccessKey", "Token"].map(text).join(" ");
    used(&world, &session, &vm.id).await;
    world.pass(60);
    assert_eq!(hear(&world, &vm, &role, &token).await.0, 401, "it was good for a minute");
}

/// Real clients use them against the real services.
async fn used(world: &World, session: &str, microvm: &str) {
    let own = std::fs::read(world.file("state/credentials.json")).unwrap();
    let own: Value = serde_json::from_slice(&own).unwrap();
    let text = |name: &str| own[name].as_str().unwrap();
    let own = format!("{} {}", text("access_key_id"), text("secret_access_key"));
    let mut command = python("session.py");
    command
        .args([&own, session, "Run", microvm])
        .env("AWS_ENDPOINT_URL", format!("https://127.0.0.1:{}", world.port))
        .env("AWS_CA_BUNDLE", world.ca())
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("HOME", world.directory.path())
        .env("AWS_EC2_METADATA_DISABLED", "true");
    sees(&mut command, 4).await;
}
