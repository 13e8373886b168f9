//! Tokens of Entra ID from an endpoint of the test, which speaks the protocol of managed identities of App Service; real
//! servers take the tokens that it has handed out.

use crate::secrets::files;
use crate::support::keyferry::Plan;
use crate::support::need;
use crate::support::server::{Server, Setup};
use crate::support::story::{Endpoint, Story};
use crate::support::versions::all_rights;
use crate::support::wire::Client;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const OBJECT_ID: &str = "4f1b8c2a-0000-4000-8000-0123456789ab";
/// Of the endpoint itself: whoever may ask it knows it.
const HEADER: &str = "endpoint-secret-1";
/// In each token.
const MARK: &str = "signature-of-token";

struct TokenEndpoint {
    port: u16,
    state: Arc<State>,
}

struct State {
    /// A status other than 200 is answered with that, without a token.
    status: AtomicU32,
    handed_out: AtomicU64,
    lasts_s: i64,
    /// The claims of a token.
    claims: serde_json::Value,
    /// Who takes the tokens: connections that may change users.
    servers: Mutex<Vec<(Client, &'static str)>>,
    asked: Mutex<Vec<String>>,
}

impl TokenEndpoint {
    fn start(servers: &[&Server], lasts_s: i64, claims: serde_json::Value) -> TokenEndpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let clients = servers.iter().map(|s| (s.client(), all_rights(s.name())));
        let state = Arc::new(State {
            status: AtomicU32::new(200),
            handed_out: AtomicU64::new(0),
            lasts_s,
            claims,
            servers: Mutex::new(clients.collect()),
            asked: Mutex::default(),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten().take(1_000) {
                let _ = shared.answer(client);
            }
        });
        TokenEndpoint { port, state }
    }

    /// What a machine with a managed identity finds in its environment.
    fn environment(&self) -> Vec<(String, String)> {
        let url = format!("http://127.0.0.1:{}/msi/token", self.port);
        vec![
            ("IDENTITY_ENDPOINT".into(), url),
            ("IDENTITY_HEADER".into(), HEADER.into()),
            // Its secret is for no proxy.
            ("HTTP_PROXY".into(), "http://127.0.0.1:1".into()),
            ("http_proxy".into(), "http://127.0.0.1:1".into()),
        ]
    }

    fn handed_out(&self) -> u64 {
        self.state.handed_out.load(SeqCst)
    }
}

impl State {
    fn answer(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut lines = BufReader::new(client.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut known = false;
        for line in lines {
            let line = line?;
            known |= line.to_ascii_lowercase().starts_with("x-identity-header:")
                && line.ends_with(HEADER);
            if line.is_empty() {
                break;
            }
        }
        let right = first.starts_with(
            "GET /msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fredis.azure.com",
        );
        self.asked.lock().expect("the list").push(first);
        let status = match self.status.load(SeqCst) {
            200 if !known || !right => 401,
            status => status,
        };
        let body = match status {
            200 => self.token(),
            _ => json!({ "error": format!("no {MARK} for you \u{1b}[2J") }).to_string(),
        };
        write!(
            client,
            "HTTP/1.1 {status} Told\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn token(&self) -> String {
        let n = self.handed_out.fetch_add(1, SeqCst) + 1;
        let claims = URL_SAFE_NO_PAD.encode(self.claims.to_string());
        let token = format!("e30.{claims}.{MARK}-{n}");
        // Those before have ended by then.
        let ended = n.checked_sub(4).filter(|n| *n > 0);
        let ended = ended.map_or(String::new(), |n| format!("<e30.{claims}.{MARK}-{n}"));
        for (server, rights) in self.servers.lock().expect("the servers").iter_mut() {
            let rule = format!("ACL SETUSER {OBJECT_ID} on >{token} {rights} {ended}");
            server.words(&rule).expect("the token is taken");
        }
        let ends = keyferry::unix_ms() / 1000 + self.lasts_s;
        json!({
            "access_token": token,
            "expires_on": ends.to_string(),
            "resource": "https://redis.azure.com",
            "token_type": "Bearer",
            "client_id": "some",
        })
        .to_string()
    }
}

fn claims() -> serde_json::Value {
    json!({ "aud": "https://redis.azure.com", "oid": OBJECT_ID })
}

/// Neither a token nor the endpoint's secret lies anywhere in what was left behind or said.
#[track_caller]
fn tells_nobody(plan: &Plan, said: &str) {
    let mut all: Vec<(String, Vec<u8>)> = (files(&plan.work_dir()).iter())
        .map(|f| {
            (
                f.display().to_string(),
                std::fs::read(f).unwrap_or_default(),
            )
        })
        .collect();
    all.push(("what was said".into(), said.as_bytes().to_vec()));
    for (place, text) in all {
        for secret in [MARK, HEADER] {
            let found = text.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{place} holds {secret}");
        }
    }
}

/// A migration lives through several tokens, and through an endpoint that fails for a while.
#[test]
fn a_migration_outlives_its_tokens() {
    let Some([name]) = need(["any"]) else { return };
    let mut story = Story::new(
        Endpoint::alone(Setup::new(&name)),
        Endpoint::alone(Setup::new(&name)),
    );
    story.fill(500);
    let servers = [&story.source.nodes()[0], &story.target.nodes()[0]];
    let endpoint = TokenEndpoint::start(&servers, 4, claims());
    let entra = json!({ "entra": { "identity": "system" } });
    story.plan.environment = endpoint.environment();
    story.plan.set("/source/password", entra.clone());
    story.plan.set("/target/password", entra);
    let mut running = story.plan.start("migrate --json --log trace");
    story.wait_loaded(&mut running);
    let target = &story.target.nodes()[0];
    let mut watch = target.client();
    let auths = |client: &mut Client| {
        let told = client
            .info_of("INFO commandstats", "cmdstat_auth")
            .unwrap_or_default();
        let calls = told
            .trim_start_matches("calls=")
            .split(',')
            .next()
            .map(str::to_owned);
        calls.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    let (before, opened) = (
        auths(&mut watch),
        target.info("stats", "total_connections_received"),
    );
    let first = endpoint.handed_out();
    std::thread::sleep(Duration::from_secs(8));
    // Each side has got two more, and every connection has told each of them.
    assert!(
        endpoint.handed_out() >= first + 4,
        "{}",
        endpoint.handed_out()
    );
    let more = target.info("stats", "total_connections_received") - opened;
    let told = auths(&mut watch) - before;
    assert!(
        told >= more as u64 + 2,
        "{told} logins with {more} new connections"
    );
    endpoint.state.status.store(500, SeqCst);
    std::thread::sleep(Duration::from_secs(5));
    let failed = endpoint.handed_out();
    let asked = endpoint.state.asked.lock().expect("the list").len();
    assert!(
        asked as u64 >= failed + 2,
        "{asked} questions, {failed} tokens"
    );
    endpoint.state.status.store(200, SeqCst);
    let renewed = || endpoint.handed_out() >= failed + 2;
    crate::support::wait_until("new tokens", Duration::from_secs(20), renewed);
    assert!(running.ended().is_none(), "{}", running.stderr_now());
    story.source.nodes()[0].run("SET after tokens");
    let outcome = story.catch_up_and_stop(running);
    let verified = story.plan.run("verify --json --log trace").exits(0);
    assert_eq!(verified.json["equal"], true, "{}", verified.stdout);
    let reported = story.plan.run("report --log trace").exits(0);
    assert_eq!(target.run("GET after").text(), "tokens");
    let said = [outcome, verified, reported]
        .map(|o| o.stdout + &o.stderr)
        .concat();
    tells_nobody(&story.plan, &said);
}

/// What is refused says who was asked for, and what may be wrong; what was answered is not repeated.
#[test]
fn a_refused_token_names_the_identity() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let endpoint = TokenEndpoint::start(&[&source], 3_600, claims());
    endpoint.state.status.store(400, SeqCst);
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.environment = endpoint.environment();
    plan.set(
        "/source/password",
        json!({ "entra": { "identity": { "client_id": "c-1" } } }),
    );
    let outcome = plan.run("migrate --log trace").exits(3);
    let outcome = outcome.says(&["the client id c-1", "status 400", "user-assigned"]);
    let asked = endpoint.state.asked.lock().expect("the list").clone();
    assert!(
        asked.iter().all(|line| line.contains("client_id=c-1")),
        "{asked:?}"
    );
    tells_nobody(&plan, &(outcome.stdout + &outcome.stderr));
    // Nothing to be asked: the variables are named.
    plan.environment = vec![("AZURE_TENANT_ID".into(), "t".into())];
    plan.set(
        "/source/password",
        json!({ "entra": { "identity": "environment" } }),
    );
    plan.run("migrate")
        .exits(3)
        .says(&["AZURE_CLIENT_ID is not set"]);
}

/// The user's name comes with the token, or from the plan; without either, it is asked for.
#[test]
fn the_user_is_the_identity() {
    let Some([name]) = need(["any"]) else { return };
    let (source, target) = (Server::start(&name), Server::start(&name));
    let endpoint = TokenEndpoint::start(&[&source], 3_600, json!({ "aud": "x" }));
    let mut plan = Plan::new(&source.url(), &target.url());
    plan.environment = endpoint.environment();
    plan.set(
        "/source/password",
        json!({ "entra": { "identity": "system" } }),
    );
    plan.run("migrate")
        .exits(3)
        .says(&["object id", "username"]);
    plan.set("/source/username", json!(OBJECT_ID));
    let outcome = plan.run("migrate --until caught-up").exits(0);
    assert!(outcome.stderr.contains("is not TLS"), "{}", outcome.stderr);
    plan.set(
        "/source/password",
        json!({ "entra": { "identity": "sistem" } }),
    );
    plan.run("check")
        .exits(2)
        .says(&["source.password.entra.identity", "system"]);
}
