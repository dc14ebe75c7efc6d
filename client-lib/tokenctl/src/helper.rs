//! The answers to programs that ask another program for credentials, each in the format that its documentation gives.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokend_client::blocking::{Client, Token};
use tokend_client::{Error, TokenName, TokenReply};

use crate::args::Helper;
use crate::commands::{Done, about};
use crate::failure::Failure;
use crate::human::rfc3339;
use crate::{json, output};

/// The longest question that is read. git writes lines of at most 64 KiB.
const QUESTION_MAX: u64 = 256 * 1024;

/// The versions of the interface to Kubernetes, the preferred one first.
const KUBERNETES: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

pub(crate) fn answer(client: &Client, helper: &Helper) -> Done {
    output::refuse_the_journal()?;
    match helper {
        Helper::Kubectl { name, variant } => kubectl(&client.variant(name, variant.into()), name),
        Helper::Git { name, operation, username, variant } => {
            git(&client.variant(name, variant.into()), name, operation, username)
        }
        Helper::Docker { name, operation, username, variant } => {
            docker(&client.variant(name, variant.into()), name, operation, username)
        }
        Helper::Bazel { name, operation, variant } => {
            bazel(&client.variant(name, variant.into()), name, operation)
        }
        Helper::Google { name, variant } => google(client.variant(name, variant.into()).get(), name),
    }
}

/// An `ExecCredential` of `client.authentication.k8s.io` (Kubernetes, "client-go credential plugins"). The client demands the
/// version that it names in `KUBERNETES_EXEC_INFO`.
fn kubectl(token: &Token, name: &TokenName) -> Done {
    let info = env::var("KUBERNETES_EXEC_INFO").unwrap_or_default();
    let info: Value = serde_json::from_str(&info).unwrap_or_default();
    let [preferred, _] = KUBERNETES;
    let version = info.get("apiVersion").and_then(Value::as_str).unwrap_or(preferred);
    if !KUBERNETES.contains(&version) {
        let message = format!(
            "the client of Kubernetes asks for {version}; set apiVersion: {preferred} in its kubeconfig"
        );
        return Err(Failure::helper(&message));
    }
    let reply = token.get().map_err(about(name))?;
    let expiry = rfc3339(reply.info.expires_at_wall.to_system_time());
    let status = json!({ "token": reply.token.expose(), "expirationTimestamp": expiry });
    output::write(&json::line(&json!({ "apiVersion": version, "kind": "ExecCredential", "status": status })))
}

/// The question that git writes to standard input (git-credential(1), "Input/output format").
#[derive(Default)]
struct Question {
    protocol: String,
    host: String,
    /// The token that was refused, in `erase`.
    credential: Option<String>,
    /// Whether git sends a token as a Bearer token, which it can since 2.46.
    knows_bearer: bool,
}

impl Question {
    fn read(input: impl Read) -> io::Result<Self> {
        let (mut text, mut question) = (String::new(), Self::default());
        input.take(QUESTION_MAX).read_to_string(&mut text)?;
        for (key, value) in
            text.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_once('='))
        {
            match key {
                "protocol" => value.clone_into(&mut question.protocol),
                "host" => value.clone_into(&mut question.host),
                "credential" | "password" => question.credential = Some(value.to_owned()),
                "capability[]" => question.knows_bearer |= value == "authtype",
                _ => (),
            }
        }
        Ok(question)
    }

    /// Whether git encrypts what it sends, or sends it to this host only.
    fn is_secure(&self) -> bool {
        is_local(&self.host) || self.protocol == "https"
    }
}

/// A credential helper of git (gitcredentials(7)). It ignores operations that it does not know.
fn git(token: &Token, name: &TokenName, operation: &str, username: &str) -> Done {
    let question =
        Question::read(io::stdin()).map_err(|error| Failure::helper(&format!("git's question: {error}")))?;
    match operation {
        "get" if !question.is_secure() => Err(Failure::helper(&format!(
            "git would send the token to {}://{} without encryption; use https",
            question.protocol, question.host
        ))),
        "get" => {
            let reply = token.get().map_err(about(name))?;
            output::write(&credential(&reply, username, question.knows_bearer))
        }
        "erase" => {
            let Some(refused) = question.credential else { return Ok(()) };
            let reply = token.get().map_err(about(name))?;
            if reply.token.expose() == refused {
                token.reject(reply.info.fingerprint).map_err(about(name))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The token as a credential of git, which is not to store it.
fn credential(reply: &TokenReply, username: &str, knows_bearer: bool) -> String {
    let token = reply.token.expose();
    let mut text = if knows_bearer {
        format!("capability[]=authtype\nauthtype=Bearer\ncredential={token}\nephemeral=1\n")
    } else {
        format!("username={username}\npassword={token}\n")
    };
    let _ = writeln!(text, "password_expiry_utc={}", seconds(reply.info.expires_at_wall.to_system_time()));
    text
}

/// Whether this is a name or an address of this host, with or without a port.
fn is_local(host: &str) -> bool {
    let port_after = |name| host.strip_prefix(name);
    let mut ports = ["localhost", "127.0.0.1", "[::1]"].into_iter().filter_map(port_after);
    ports.any(|port| port.is_empty() || port.starts_with(':'))
}

/// Whether a program that means this URL encrypts what it sends, or sends it to this host only. A registry has no scheme, and is
/// asked over https.
fn is_secure(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return true };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    matches!(scheme, "https" | "grpcs") || is_local(host)
}

/// Reads the question of a program.
fn question(program: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().take(QUESTION_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::helper(&format!("{program}'s question: {error}")))?;
    Ok(text)
}

fn insecure(program: &str, url: &str) -> Failure {
    Failure::helper(&format!("{program} would send the token to {url:.256} without encryption; use https"))
}

/// A credential helper of Docker (the README of docker-credential-helpers, "Development"). It has nothing to store.
fn docker(token: &Token, name: &TokenName, operation: &str, username: &str) -> Done {
    match operation {
        "get" => {
            let url = question("Docker")?;
            let url = url.trim();
            if !is_secure(url) {
                return Err(insecure("Docker", url));
            }
            let reply = token.get().map_err(about(name))?;
            let secret = reply.token.expose();
            output::write(&json::line(&json!({ "ServerURL": url, "Username": username, "Secret": secret })))
        }
        "list" => output::write("{}\n"),
        "erase" => Ok(()),
        _ => Err(Failure::helper(
            "the token comes from tokend: there is nothing to store, and no need for `docker login`",
        )),
    }
}

/// A credential helper of Bazel (the specification `credential-helper-spec` of `EngFlow`).
fn bazel(token: &Token, name: &TokenName, operation: &str) -> Done {
    if operation != "get" {
        return Err(Failure::helper("Bazel asks with the word `get`"));
    }
    let asked: Value = serde_json::from_str(&question("Bazel")?).unwrap_or_default();
    let Some(url) = asked.get("uri").and_then(Value::as_str) else {
        return Err(Failure::helper("Bazel's question is no JSON object with the member `uri`"));
    };
    if !is_secure(url) {
        return Err(insecure("Bazel", url));
    }
    let reply = token.get().map_err(about(name))?;
    let value = format!("{} {}", reply.token_type, reply.token.expose());
    let expires = rfc3339(reply.info.expires_at_wall.to_system_time());
    output::write(&json::line(&json!({ "headers": { "Authorization": [value] }, "expires": expires })))
}

/// The output of an executable-sourced credential (Google, AIP-4117), also of a failure.
fn google(reply: Result<TokenReply, Error>, name: &TokenName) -> Done {
    let failure = match reply {
        Ok(reply) => {
            return output::write(&json::line(&json!({
                "version": 1,
                "success": true,
                "token_type": "urn:ietf:params:oauth:token-type:jwt",
                "id_token": reply.token.expose(),
                "expiration_time": seconds(reply.info.expires_at_wall.to_system_time()),
            })));
        }
        Err(error) => about(name)(error),
    };
    let (code, message) = (failure.code, &failure.message);
    output::write(&json::line(&json!({ "version": 1, "success": false, "code": code, "message": message })))?;
    Err(failure)
}

/// Seconds since the Unix epoch.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_secure(protocol: &str, host: &str) -> bool {
        Question::read(format!("protocol={protocol}\nhost={host}\n").as_bytes()).unwrap().is_secure()
    }

    #[test]
    fn a_token_goes_to_other_hosts_by_tls_only() {
        assert!(is_secure("https", "git.example:8443"));
        assert!(!is_secure("http", "git.example"));
        assert!(!is_secure("http", "localhost.example:80"));
        for host in ["localhost", "localhost:3000", "127.0.0.1:80", "[::1]", "[::1]:80"] {
            assert!(is_secure("http", host), "{host}");
        }
    }

    #[test]
    fn a_question_ends_at_an_empty_line() {
        let question = Question::read(&b"protocol=https\nhost=a\npassword=x=y\n\nhost=b\n"[..]).unwrap();
        assert_eq!((question.host.as_str(), question.credential.as_deref()), ("a", Some("x=y")));
        assert!(!question.knows_bearer);
    }
}
