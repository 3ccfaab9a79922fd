use std::sync::Arc;

use kafka_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use kafka_protocol::messages::{
    AlterUserScramCredentialsRequest, ApiVersionsRequest, DescribeUserScramCredentialsRequest,
    MetadataRequest, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::StrBytes;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::client::{Client, connect, connect_as};
use super::double::Double;
use crate::kafka::{Config, Ended, Login, Server};
use crate::metadata::{ClusterImage, Command, ScramMechanism, ScramVerifier};

const ENCRYPTED: Login = Login::Password { encrypted: true };

fn with_user() -> Arc<Double> {
    let double = Double::new();
    let mechanism = ScramMechanism::Sha256;
    let salted = mechanism.salted_password(b"secret", b"salt", 4096);
    double.apply(&Command::SetCredential {
        user: "me".to_owned(),
        mechanism,
        verifier: ScramVerifier::derived(mechanism, &salted, b"salt", 4096),
    });
    double
}

fn connect_to_log_in(double: &Arc<Double>, login: Login) -> Client {
    let server = Server::new(Arc::clone(double), Config::default());
    connect_as(&server, None, login)
}

async fn choose(client: &mut Client, mechanism: &'static str) -> (i16, Vec<String>) {
    let request =
        SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
    let response = client.call(&request, 1).await;
    let offered = response.mechanisms.iter().map(ToString::to_string);
    (response.error_code, offered.collect())
}

async fn say(client: &mut Client, message: &'static [u8], version: i16) -> i16 {
    let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
    let response = client.call(&request, version).await;
    assert_eq!(response.error_code != 0, response.error_message.is_some());
    response.error_code
}

#[tokio::test]
async fn nothing_is_served_before_the_login_and_everything_after_it() {
    let double = with_user();
    let mut early = connect_to_log_in(&double, ENCRYPTED);
    early.call(&ApiVersionsRequest::default(), 3).await;
    early.send(&MetadataRequest::default(), 9).await;
    assert_eq!(early.expect_closed().await, Ended::Refused);

    for version in 0..=2 {
        let mut client = connect_to_log_in(&double, ENCRYPTED);
        let (code, offered) = choose(&mut client, "PLAIN").await;
        assert_eq!(code, 0);
        assert_eq!(offered, ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"]);
        assert_eq!(say(&mut client, b"\0me\0secret", version).await, 0);
        let response = client.call(&MetadataRequest::default(), 9).await;
        assert_eq!(response.brokers.len(), 2);
        // Who has logged in does not do so again.
        assert_eq!(choose(&mut client, "PLAIN").await.0, 34);
        client.call(&MetadataRequest::default(), 9).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_login_is_answered_late_and_is_the_last_answer() {
    let double = with_user();
    for message in [&b"\0me\0Secret"[..], b"\0you\0secret", b"", b"\xff\xff"] {
        let mut client = connect_to_log_in(&double, ENCRYPTED);
        choose(&mut client, "PLAIN").await;
        let started = Instant::now();
        assert_eq!(say(&mut client, message, 2).await, 58);
        assert_eq!(started.elapsed().as_secs(), 1);
        assert_eq!(client.expect_closed().await, Ended::Refused);
    }
    let mut client = connect_to_log_in(&double, ENCRYPTED);
    let (code, offered) = choose(&mut client, "GSSAPI").await;
    assert_eq!((code, offered.len()), (33, 3));
    assert_eq!(client.expect_closed().await, Ended::Refused);
    let mut client = connect_to_log_in(&double, ENCRYPTED);
    assert_eq!(say(&mut client, b"\0me\0secret", 2).await, 34);
    assert_eq!(client.expect_closed().await, Ended::Refused);
    // Who says nothing is not waited for.
    let client = connect_to_log_in(&double, ENCRYPTED);
    let started = Instant::now();
    assert_eq!(client.expect_closed().await, Ended::Refused);
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn a_password_does_not_go_over_a_connection_that_others_can_read() {
    let mut client = connect_to_log_in(&with_user(), Login::Password { encrypted: false });
    let (code, offered) = choose(&mut client, "PLAIN").await;
    assert_eq!(code, 33);
    assert_eq!(offered, ["SCRAM-SHA-512", "SCRAM-SHA-256"]);
}

#[tokio::test]
async fn a_large_request_before_the_login_is_not_read() {
    let mut client = connect_to_log_in(&with_user(), ENCRYPTED);
    choose(&mut client, "PLAIN").await;
    // Its length and its kind are enough.
    let begin = [0, 1, 0x11, 0x70, 0, 36, 0, 2];
    client.stream.write_all(&begin).await.unwrap();
    assert_eq!(client.expect_closed().await, Ended::Refused);
}

fn set(name: &'static str, mechanism: i8, iterations: i32) -> AlterUserScramCredentialsRequest {
    let length = if mechanism == 1 { 32 } else { 64 };
    let new = ScramCredentialUpsertion::default()
        .with_name(StrBytes::from_static_str(name))
        .with_mechanism(mechanism)
        .with_iterations(iterations)
        .with_salt(b"salt".to_vec().into())
        .with_salted_password(vec![7; length].into());
    AlterUserScramCredentialsRequest::default().with_upsertions(vec![new])
}

#[tokio::test]
async fn users_are_made_shown_and_deleted() {
    let double = Double::new();
    // A listener that lets everybody in is no way to become a user of the others.
    let response = connect(&double).call(&set("me", 1, 4096), 0).await;
    assert_eq!(response.results[0].error_code, 31);
    let server = Server::new(Arc::clone(&double), Config::default());
    let mut client = connect_as(&server, Some("ops"), Login::None);
    for (request, code) in [
        (set("me", 1, 4096), 0),
        (set("me", 2, 8192), 0),
        (set("me", 3, 4096), 33),
        (set("me", 1, 4095), 93),
        (set("me", 1, 16385), 93),
        (set("me", 1, -1), 93),
        (set("", 1, 4096), 93),
    ] {
        let response = client.call(&request, 0).await;
        assert_eq!(response.results[0].error_code, code, "{request:?}");
    }
    let twice = set("me", 1, 4096);
    let twice = twice
        .clone()
        .with_upsertions([twice.upsertions.clone(), twice.upsertions].concat());
    let response = client.call(&twice, 0).await;
    assert_eq!(
        (response.results.len(), response.results[0].error_code),
        (1, 92)
    );

    let all = DescribeUserScramCredentialsRequest::default().with_users(None);
    let response = client.call(&all, 0).await;
    let infos: Vec<_> = response.results[0]
        .credential_infos
        .iter()
        .map(|info| (info.mechanism, info.iterations))
        .collect();
    assert_eq!(infos, [(1, 4096), (2, 8192)]);

    let deletion = ScramCredentialDeletion::default()
        .with_name(StrBytes::from_static_str("me"))
        .with_mechanism(1);
    let delete = AlterUserScramCredentialsRequest::default().with_deletions(vec![deletion]);
    for code in [0, 91] {
        let response = client.call(&delete, 0).await;
        assert_eq!(response.results[0].error_code, code);
    }

    // Who has logged in with a password makes no other users; who has shown a certificate does.
    let double = with_user();
    let mut client = connect_to_log_in(&double, ENCRYPTED);
    choose(&mut client, "PLAIN").await;
    say(&mut client, b"\0me\0secret", 2).await;
    let response = client.call(&set("you", 1, 4096), 0).await;
    assert_eq!(response.results[0].error_code, 31);
    let server = Server::new(Arc::clone(&double), Config::default());
    let mut client = connect_as(&server, Some("ops"), ENCRYPTED);
    let response = client.call(&set("you", 1, 4096), 0).await;
    assert_eq!(response.results[0].error_code, 0);
    let image = crate::kafka::Service::image(&*double);
    assert!(
        image
            .scram_verifier("you", ScramMechanism::Sha256)
            .is_some()
    );
    let stored = serde_json::to_string(&*image).unwrap();
    let read: ClusterImage = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, *image, "credentials are stored");
}
