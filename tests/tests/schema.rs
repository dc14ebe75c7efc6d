//! The JSON Schema of the configuration, for editors (`systemd/tokend.schema.json`), held against the daemon. It has no required
//! keys, because a drop-in may have any part of a section.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tokend_tests::{process, program, requirement, wait};

/// The kinds of sections, each with a section in which a key is unknown.
const SECTIONS: [(&str, &str); 5] = [
    ("daemon", "[daemon]"),
    ("admin", "[admin]"),
    ("provider", "[provider.x]"),
    ("token", "[token.x]"),
    ("preset", "[preset.x]"),
];

/// Faults of a single value, each after a sound beginning. The daemon and the schema refuse each of them.
const FAULTS: [(&str, &[&str]); 5] = [
    (
        "[daemon]",
        &[
            "sockett = \"/s\"",
            "socket = \"relative\"",
            "http_socket = 5",
            "socket_group = \"-x\"",
            "state_key = \"hunter2\"",
            "max_connections = 0",
            "max_connections = \"many\"",
            "max_connections = 100001",
            "max_watches_per_uid = 1.5",
        ],
    ),
    (
        "[admin]",
        &[
            "allow = \"user:a\"",
            "allow = [\"alice\"]",
            "allow = [7]",
            "allow = [\"user:\"]",
            "allow = [\"user:a b\"]",
            "allow = [\"unit:billing\"]",
            "allow = [\"unit:*.service\"]",
            "allow = [\"unit:a@.service\"]",
            "allow = [\"exe:relative\"]",
            "allow = [\"exe:/usr/bin/*\"]",
            "allow = [\"user_unit:a.service\"]",
            "allow = [{}]",
            "allow = [{ uid = \"1\" }]",
            "allow = [{ user_unit = \"a.service\" }]",
            "root = \"no\"",
        ],
    ),
    (
        "[provider.p]\nclient_id = \"c\"\npreset = \"econnect-psb\"\nclient_secret = { env = \"A\" }",
        &[
            "clientid = \"c\"",
            "token_endpoint = \"http://id.example/token\"",
            "token_endpoint = \"http://localhost.example/token\"",
            "token_endpoint = \"https://user@id.example/token\"",
            "token_endpoint = \"https://id.example/token#x\"",
            "token_endpoint = \"id.example\"",
            "issuer = \"https://id.example/?x=1\"",
            "token_endpoint_auth_method = \"client_secret_pots\"",
            "signing_alg = \"RS257\"",
            "assertion_audience = \"\"",
            "private_key_passphrase = \"hunter2\"",
            "client_certificate = \"relative\"",
            "ca_file = \"relative\"",
            "proxy = \"http://proxy.example/x\"",
            "accept = \"\"",
            "default_lifetime = \"0s\"",
            "default_lifetime = 300",
            "max_requests_per_minute = 60001",
        ],
    ),
    (
        "[provider.p]\nclient_id = \"c\"\npreset = \"econnect-psb\"",
        &[
            "client_secret = \"hunter2\"",
            "client_secret = {}",
            "client_secret = { fil = \"/x\" }",
            "client_secret = { file = \"relative\" }",
            "client_secret = { env = \"A=B\" }",
            "client_secret = { credential = \"a/b\" }",
            "client_secret = { command = [] }",
            "client_secret = { command = \"pass show x\" }",
            "client_secret = { env = \"A\", file = \"/x\" }",
            "client_secret = []",
            "client_secret = [{ env = \"A\" }, { env = \"A\" }]",
        ],
    ),
    (
        "[provider.p]\nclient_id = \"c\"\npreset = \"econnect-psb\"\nclient_secret = { env = \"A\" }\n\
         [token.t]\nprovider = \"p\"",
        &[
            "scpoe = \"a\"",
            "grant_type = \"pasword\"",
            "subject_token = \"hunter2\"",
            "params = { assertion = \"x\" }",
            "scope = 5",
            "scope = [\"a b\"]",
            "scope = \"a\\\"\"",
            "resource = true",
            "params = { x = 1.5 }",
            "params = { scope = \"x\" }",
            "headers = { Authorization = \"x\" }",
            "headers = { \"a b\" = \"x\" }",
            "headers = { A = \"\" }",
            "headers = { A = \"hü\" }",
            "caller_headers = \"X\"",
            "refresh_before = \"300\"",
            "refresh_before = \"-5m\"",
            "refresh_before = \"5M\"",
            "scope_required = \"yes\"",
            "warm = \"on demand\"",
            "variants = { scopes = [\"a\"] }",
            "variants = { scope = [\"a b\"] }",
            "variants = { scope = [{ term = \"a\" }] }",
            "[token.\"a/b\"]\nprovider = \"p\"",
            "[logging]\nlevel = 1",
        ],
    ),
];

/// Values at the edge of what is sound, which neither refuses.
const SOUND: &str = r#"
[admin]
allow = ["any", "user:0", "user:a.b-c_d@e$", "unit:pay-out@eu\\x2dwest.service", "unit:w@*.socket", "exe:/usr/bin/report"]

[provider.p]
token_endpoint = "http://[::1]:1/"
client_id = "c"
client_secret = [{ file = "/a" }, { command = ["pass", ""] }]
default_lifetime = "1day 2hours"

[provider.key]
token_endpoint = "https://id.example/token"
client_id = "c"
private_key = [{ file = "/a" }, { env = "B" }]
private_key_passphrase = { credential = "p" }
signing_alg = "EdDSA"
assertion_audience = "urn:x"

[provider.assertion]
token_endpoint = "https://id.example/token"
client_id = "c"
client_assertion = { file = "/a" }
client_assertion_type = "urn:x"

[provider.behind-a-proxy]
issuer = "https://id.example:8443/realm"
client_id = "c"
client_secret = { credential = "s" }
proxy = "http://proxy.example:3128/"

[token."a@b:c+d"]
provider = "p"
params = { x = "" }
refresh_before = "0s"
variants = { scope = ["a", { term = "b", allow = [{ user = "a", user_unit = "b.service" }] }], audience = "x" }

[token.no-scope]
provider = "behind-a-proxy"
scope = ""
"#;

fn schema() -> Value {
    let text = fs::read_to_string(program::workspace().join("systemd/tokend.schema.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The schema of a section of this kind.
fn section<'a>(schema: &'a Value, kind: &str) -> &'a Value {
    let sections = &schema["properties"][kind];
    if sections["properties"].is_object() { sections } else { &sections["additionalProperties"] }
}

fn faults(text: &str) -> Vec<String> {
    let found = tokend::config::parse(Path::new("tokend.toml"), text).err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

/// A configuration as the schema sees it.
fn instance(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

/// Asserts that each of the configurations is as this schema says, to which the schema of a configuration is `#/definitions/configuration`.
fn assert_each(instances: &[Value], item: &Value) {
    let mut configuration = schema();
    let mut definitions = configuration.as_object_mut().unwrap().remove("definitions").unwrap();
    let version = configuration["$schema"].clone();
    definitions["configuration"] = configuration;
    let all = json!({ "$schema": version, "type": "array", "items": item, "definitions": definitions });
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        let path = folder.path().join(name);
        fs::write(&path, value.to_string()).unwrap();
        path
    };
    let mut validate = Command::new("jsonschema");
    validate.arg("-i").arg(write("instances.json", &instances.into())).arg(write("schema.json", &all));
    let validated = process::run(&mut validate, wait::PATIENCE);
    assert_eq!(validated.code, 0, "{}{}", validated.stdout, validated.stderr);
}

#[test]
fn the_schema_has_the_keys_of_the_daemon_and_no_others() {
    let (schema, reference) = (schema(), include_str!("../../daemon/CONFIGURATION.md"));
    for (kind, header) in SECTIONS {
        let fault = faults(&format!("{header}\nq = 1\n")).remove(0);
        let (_, keys) = fault.split_once("the keys here are ").unwrap();
        let words = keys.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        let expected: BTreeSet<&str> = words.filter(|word| !matches!(*word, "" | "and" | "or")).collect();
        let properties = section(&schema, kind)["properties"].as_object().unwrap();
        assert_eq!(properties.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{kind}");
        for (key, property) in properties {
            let described = property["description"].as_str().unwrap();
            assert!(without_links(reference).contains(described), "{kind}.{key}: {described}");
        }
    }
}

/// The text with `[text](target)` as `text`.
fn without_links(markdown: &str) -> String {
    let mut parts = markdown.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let link = text.rfind('[').unwrap();
        text.remove(link);
        text += part.split_once(')').unwrap().1;
    }
    text
}

#[test]
fn the_schema_accepts_what_the_daemon_accepts() {
    if !requirement::program("jsonschema") {
        return;
    }
    let read = |path: &str| fs::read_to_string(program::workspace().join(path)).unwrap();
    let presets = fs::read_dir(program::workspace().join("daemon/presets")).unwrap();
    let mut texts: Vec<String> =
        presets.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    assert_eq!(texts.len(), 5);
    texts.push(read("systemd/tokend.toml"));
    assert_eq!(faults(SOUND), [""; 0]);
    texts.push(SOUND.to_owned());
    let reference = read("daemon/CONFIGURATION.md");
    let blocks = reference.split("\n```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
    texts.extend(blocks.map(str::to_owned));
    assert!(texts.len() > 10);
    texts.extend(FAULTS.iter().map(|(beginning, _)| (*beginning).to_owned()));
    let instances: Vec<Value> = texts.iter().map(|text| instance(text)).collect();
    assert_each(&instances, &json!({ "$ref": "#/definitions/configuration" }));
}

#[test]
fn the_schema_refuses_each_fault_of_a_value() {
    if !requirement::program("jsonschema") {
        return;
    }
    let texts = FAULTS
        .iter()
        .flat_map(|(beginning, faulty)| faulty.iter().map(move |line| format!("{beginning}\n{line}\n")));
    let texts: Vec<String> = texts.collect();
    for text in &texts {
        assert_ne!(faults(text), [""; 0], "the daemon accepts\n{text}");
    }
    let instances: Vec<Value> = texts.iter().map(|text| instance(text)).collect();
    assert_each(&instances, &json!({ "not": { "$ref": "#/definitions/configuration" } }));
}
