//! The status as metrics of Prometheus. The names and labels are stable: metrics are only added.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::{Count, DaemonStatus, State, TokenStatus};

/// The most tokens with metrics of their own, and the most providers with a label. Beyond that, a scrape costs more than the metrics
/// are worth: `tokend_tokens` still counts all tokens.
const DETAILED_MAX: usize = 1000;

const STATES: [State; 6] = [
    State::Fresh,
    State::Refreshing,
    State::Degraded,
    State::Pending,
    State::Unavailable,
    State::NeedsOperator,
];

/// The text formats. They differ in the names by which HELP and TYPE lines refer to a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Version 0.0.4 of Prometheus, which the textfile collector of `node_exporter` and promtool read.
    Prometheus,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
}

impl Dialect {
    /// The one that a client prefers, by the values of its `Accept` headers.
    pub fn of_accept<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let is_open = |value: &str| value.to_ascii_lowercase().contains("application/openmetrics-text");
        let is_open = accept.into_iter().any(is_open);
        if is_open { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The media type of the text.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

/// The labels and the value of one time series.
type Sample<'a> = (Vec<(&'static str, &'a str)>, String);

/// A metric of each token.
struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&TokenStatus) -> Option<String>,
}

/// Those of [`EACH`] that are 0 to anyone but an operator.
const FOR_OPERATORS: [&str; 3] = ["tokend_token_refusals", "tokend_token_waiting", "tokend_token_variants"];

const EACH: [Metric; 9] = [
    Metric {
        name: "tokend_token_expires_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When the held token expires, in Unix time.",
        value: |token| token.held.map(|held| seconds(held.expires_at_wall.0)),
    },
    Metric {
        name: "tokend_token_issued_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When the held token was requested, in Unix time.",
        value: |token| {
            let held = token.held?;
            let lifetime = held.expires_at.0.saturating_sub(held.issued_at.0);
            Some(seconds(held.expires_at_wall.0.saturating_sub(lifetime)))
        },
    },
    Metric {
        name: "tokend_token_next_attempt_timestamp_seconds",
        kind: Kind::Gauge,
        help: "When the daemon will ask the provider next, in Unix time.",
        value: |token| token.next_attempt.map(|at| seconds(at.0)),
    },
    Metric {
        name: "tokend_token_requests",
        kind: Kind::Counter,
        help: "Requests to the provider since the daemon started, those for metadata too.",
        value: |token| Some(token.requests.to_string()),
    },
    Metric {
        name: "tokend_token_hand_outs",
        kind: Kind::Counter,
        help: "Hand-outs of the token since the daemon started.",
        value: |token| Some(token.hand_outs.to_string()),
    },
    Metric {
        name: "tokend_token_refusals",
        kind: Kind::Counter,
        help: "Callers that were refused the token since the daemon started.",
        value: |token| Some(count(token, "refused").to_string()),
    },
    Metric {
        name: "tokend_token_waiting",
        kind: Kind::Gauge,
        help: "Callers that wait for the token.",
        value: |token| Some(count(token, "waiting").to_string()),
    },
    Metric {
        name: "tokend_token_variants",
        kind: Kind::Gauge,
        help: "Variants of the token that hold a valid token.",
        value: |token| Some(token.variants_held.to_string()),
    },
    Metric {
        name: "tokend_token_consecutive_failures",
        kind: Kind::Gauge,
        help: "Failed requests since the last success.",
        value: |token| Some(token.failures.to_string()),
    },
];

/// A text of metrics.
struct Exposition {
    text: String,
    dialect: Dialect,
}

/// The data of the metrics. They are collected from the pages of a status, and take little memory.
#[derive(Debug)]
pub struct Metrics {
    daemon: DaemonStatus,
    /// The tokens by provider and state.
    counts: BTreeMap<(String, State), u64>,
    /// Whether there are too many providers for a label.
    is_unnamed: bool,
    /// All tokens, until they are too many.
    tokens: Option<Vec<TokenStatus>>,
}

impl Metrics {
    /// Without a token.
    pub fn new(daemon: DaemonStatus) -> Self {
        Self { daemon, counts: BTreeMap::new(), is_unnamed: false, tokens: Some(Vec::new()) }
    }

    /// Adds the next tokens.
    pub fn add(&mut self, tokens: Vec<TokenStatus>) {
        for token in &tokens {
            let provider = if self.is_unnamed { "" } else { token.provider.as_str() };
            *self.counts.entry((provider.to_owned(), token.state)).or_default() += 1;
        }
        if self.providers().len() > DETAILED_MAX {
            self.is_unnamed = true;
            for ((_, state), count) in std::mem::take(&mut self.counts) {
                *self.counts.entry((String::new(), state)).or_default() += count;
            }
        }
        if let Some(kept) = &mut self.tokens {
            kept.extend(tokens);
        }
        self.tokens.take_if(|kept| kept.len() > DETAILED_MAX);
    }

    fn providers(&self) -> BTreeSet<&str> {
        self.counts.keys().map(|(provider, _)| provider.as_str()).collect()
    }

    /// The text. Without metrics, the daemon did not answer.
    pub fn render(metrics: Option<&Self>, dialect: Dialect) -> String {
        let mut out = Exposition { text: String::new(), dialect };
        let up = u8::from(metrics.is_some()).to_string();
        out.family("tokend_up", Kind::Gauge, "Whether the daemon answered (1) or not (0).", [(vec![], up)]);
        if let Some(metrics) = metrics {
            out.daemon(&metrics.daemon);
            out.tokens(metrics);
            if let Some(tokens) = &metrics.tokens {
                out.each_token(tokens, metrics.daemon.pid != 0);
                out.failures(tokens);
            }
        }
        out.text.push_str("# EOF\n");
        out.text
    }
}

impl Exposition {
    /// Adds the time series of one name, if there are any. The name of a counter is without `_total`.
    fn family<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let (kind, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        let family = match self.dialect {
            Dialect::Prometheus => format!("{name}{suffix}"),
            Dialect::OpenMetrics => name.to_owned(),
        };
        let text = &mut self.text;
        let _ = writeln!(text, "# HELP {family} {help}\n# TYPE {family} {kind}");
        if name.ends_with("_seconds") {
            let _ = writeln!(text, "# UNIT {family} seconds");
        }
        for (labels, value) in samples {
            let _ = write!(text, "{name}{suffix}");
            for (index, (label, value)) in labels.iter().enumerate() {
                let before = if index == 0 { '{' } else { ',' };
                let _ = write!(text, "{before}{label}=\"{}\"", escaped(value));
            }
            let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
        }
    }

    fn daemon(&mut self, daemon: &DaemonStatus) {
        let mut gauge = |name: &str, help: &str, labels, value| {
            self.family(name, Kind::Gauge, help, [(labels, value)]);
        };
        gauge(
            "tokend_build_info",
            "The version of the daemon.",
            vec![("version", daemon.version.as_str())],
            "1".to_owned(),
        );
        let started = seconds(daemon.started_at.0);
        gauge("tokend_start_time_seconds", "When the daemon started, in Unix time.", vec![], started);
        // Only operators see the process.
        if daemon.pid != 0 {
            let connections = daemon.connections.to_string();
            gauge(
                "tokend_connections",
                "Open connections, including that of this scrape.",
                vec![],
                connections,
            );
            let is_good = u8::from(daemon.reload_failed_at.is_none()).to_string();
            gauge(
                "tokend_last_reload_successful",
                "Whether the last reload took effect (1) or failed and changed nothing (0).",
                vec![],
                is_good,
            );
            let resident = daemon.counts.iter().find(|count| count.name == "resident-bytes");
            if let Some(Count { value, .. }) = resident {
                let help = "The resident memory of the daemon.";
                gauge("tokend_resident_memory_bytes", help, vec![], value.to_string());
            }
        }
    }

    /// The number of tokens by provider and state, also of states that no token is in.
    fn tokens(&mut self, metrics: &Metrics) {
        let samples = metrics.providers().into_iter().flat_map(|provider| {
            STATES.map(|state| {
                let count = metrics.counts.get(&(provider.to_owned(), state)).copied().unwrap_or_default();
                (vec![("provider", provider), ("state", state.as_str())], count.to_string())
            })
        });
        self.family("tokend_tokens", Kind::Gauge, "Tokens by provider and state.", samples);
    }

    fn each_token(&mut self, tokens: &[TokenStatus], is_operator: bool) {
        let states = tokens.iter().flat_map(|token| {
            STATES.map(|state| {
                let labels = [identity(token), vec![("state", state.as_str())]].concat();
                (labels, u8::from(token.state == state).to_string())
            })
        });
        self.family(
            "tokend_token_state",
            Kind::Gauge,
            "Whether the token is in the state (1) or not (0).",
            states,
        );
        let visible = |metric: &Metric| is_operator || !FOR_OPERATORS.contains(&metric.name);
        for Metric { name, kind, help, value } in EACH.into_iter().filter(visible) {
            let samples = tokens.iter().filter_map(|token| Some((identity(token), value(token)?)));
            self.family(name, kind, help, samples);
        }
    }

    fn failures(&mut self, tokens: &[TokenStatus]) {
        let last = tokens.iter().filter_map(|token| {
            let error = token.last_error.as_ref()?;
            Some(([identity(token), vec![("class", error.class.as_str())]].concat(), seconds(error.at.0)))
        });
        self.family(
            "tokend_token_last_failure_timestamp_seconds",
            Kind::Gauge,
            "When the last request failed, in Unix time, and why. It is absent after a success.",
            last,
        );
        let failed = tokens.iter().flat_map(|token| {
            token.counts.iter().filter_map(|count| {
                let class = count.name.strip_prefix("failed-")?;
                Some(([identity(token), vec![("class", class)]].concat(), count.value.to_string()))
            })
        });
        self.family(
            "tokend_token_failures",
            Kind::Counter,
            "Failed requests since the daemon started, by the class of the failure.",
            failed,
        );
        let deviations = tokens.iter().flat_map(|token| {
            token.deviations.iter().map(|deviation| {
                let labels = [identity(token), vec![("kind", deviation.kind.as_str())]].concat();
                (labels, deviation.count.to_string())
            })
        });
        self.family(
            "tokend_token_deviations",
            Kind::Counter,
            "Deviations from the RFCs in replies of the provider since the daemon started.",
            deviations,
        );
    }
}

/// A number about a token.
fn count(token: &TokenStatus, name: &str) -> u64 {
    token.counts.iter().find(|count| count.name == name).map_or(0, |count| count.value)
}

/// The labels of a token's time series.
fn identity(token: &TokenStatus) -> Vec<(&'static str, &str)> {
    vec![("token", token.name.as_str()), ("provider", token.provider.as_str())]
}

/// Milliseconds as seconds.
fn seconds(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// The value of a label, as both formats write it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootInstant, Count, Deviation, ErrorClass, Fingerprint, HeldToken, LastError, Timestamp};

    fn render(metrics: Option<&Metrics>, dialect: Dialect) -> String {
        Metrics::render(metrics, dialect)
    }

    fn token(name: &str, provider: &str) -> TokenStatus {
        TokenStatus {
            name: name.parse().unwrap(),
            provider: provider.to_owned(),
            state: State::Pending,
            held: None,
            last_error: None,
            failures: 0,
            next_attempt: None,
            requests: 0,
            hand_outs: 0,
            deviations: Vec::new(),
            attributes: Vec::new(),
            counts: Vec::new(),
            variants_held: 0,
            variants: Vec::new(),
        }
    }

    fn metrics(tokens: Vec<TokenStatus>) -> Metrics {
        let daemon = DaemonStatus {
            version: "9.8.7".to_owned(),
            pid: 4711,
            started_at: Timestamp(1_700_000_000_123),
            connections: 2,
            reload_failed_at: None,
            attributes: Vec::new(),
            counts: vec![Count { name: "resident-bytes".to_owned(), value: 4_194_304 }],
        };
        let mut metrics = Metrics::new(daemon);
        // In pages.
        let mut tokens = tokens.into_iter().peekable();
        while tokens.peek().is_some() {
            metrics.add(tokens.by_ref().take(96).collect());
        }
        metrics
    }

    /// The lines of a text that begin with this.
    fn lines<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.starts_with(start)).collect()
    }

    #[test]
    fn the_facts_of_a_token_are_time_series() {
        let held = HeldToken {
            issued_at: BootInstant(5_000),
            expires_at: BootInstant(3_605_000),
            expires_at_wall: Timestamp(2_000_000_000_050),
            fingerprint: Fingerprint([1; 8]),
        };
        let error =
            LastError { class: ErrorClass::Timeout, message: "a text".to_owned(), at: Timestamp(7_001) };
        let psb = TokenStatus {
            state: State::Degraded,
            held: Some(held),
            last_error: Some(error),
            failures: 3,
            next_attempt: Some(Timestamp(9_000)),
            requests: 12,
            hand_outs: 40,
            deviations: vec![Deviation { kind: "expires_in-string".to_owned(), count: 4 }],
            variants_held: 2,
            ..token("psb", "bank")
        };
        let text = render(Some(&metrics(vec![psb, token("bnp", "bank")])), Dialect::Prometheus);
        let of_psb: Vec<_> =
            lines(&text, "tokend_").into_iter().filter(|line| line.contains("psb")).collect();
        let labels = r#"token="psb",provider="bank""#;
        let expected = [
            format!("tokend_token_state{{{labels},state=\"fresh\"}} 0"),
            format!("tokend_token_state{{{labels},state=\"refreshing\"}} 0"),
            format!("tokend_token_state{{{labels},state=\"degraded\"}} 1"),
            format!("tokend_token_state{{{labels},state=\"pending\"}} 0"),
            format!("tokend_token_state{{{labels},state=\"unavailable\"}} 0"),
            format!("tokend_token_state{{{labels},state=\"needs-operator\"}} 0"),
            format!("tokend_token_expires_timestamp_seconds{{{labels}}} 2000000000.050"),
            format!("tokend_token_issued_timestamp_seconds{{{labels}}} 1999996400.050"),
            format!("tokend_token_next_attempt_timestamp_seconds{{{labels}}} 9.000"),
            format!("tokend_token_requests_total{{{labels}}} 12"),
            format!("tokend_token_hand_outs_total{{{labels}}} 40"),
            format!("tokend_token_refusals_total{{{labels}}} 0"),
            format!("tokend_token_waiting{{{labels}}} 0"),
            format!("tokend_token_variants{{{labels}}} 2"),
            format!("tokend_token_consecutive_failures{{{labels}}} 3"),
            format!("tokend_token_last_failure_timestamp_seconds{{{labels},class=\"timeout\"}} 7.001"),
            format!("tokend_token_deviations_total{{{labels},kind=\"expires_in-string\"}} 4"),
        ];
        assert_eq!(of_psb, expected);
        let of_bnp = lines(&text, "tokend_token_").into_iter().filter(|line| line.contains("bnp"));
        assert_eq!(of_bnp.count(), 12, "nothing that it does not have: {text}");
        assert!(!text.contains("a text"));
    }

    #[test]
    fn the_numbers_of_a_token_that_are_known_here_are_time_series() {
        let counts = [("failed-timeout", 5), ("failed-tls", 2), ("later", 1), ("refused", 6), ("waiting", 7)]
            .map(|(name, value)| Count { name: name.to_owned(), value });
        let psb = TokenStatus { counts: counts.to_vec(), ..token("psb", "bank") };
        let text = render(Some(&metrics(vec![psb])), Dialect::Prometheus);
        for line in [
            "tokend_token_failures_total{token=\"psb\",provider=\"bank\",class=\"timeout\"} 5\n",
            "tokend_token_failures_total{token=\"psb\",provider=\"bank\",class=\"tls\"} 2\n",
            "tokend_token_refusals_total{token=\"psb\",provider=\"bank\"} 6\n",
            "tokend_token_waiting{token=\"psb\",provider=\"bank\"} 7\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(!text.contains("later"));
        let mut of_another = metrics(vec![token("psb", "bank")]);
        of_another.daemon.pid = 0;
        let text = render(Some(&of_another), Dialect::Prometheus);
        for name in ["refusals", "waiting", "variants"] {
            assert!(!text.contains(name), "what only operators know is not shown as 0: {text}");
        }
    }

    #[test]
    fn the_facts_of_the_daemon_are_time_series() {
        let of_daemon = |metrics: &Metrics| {
            let text = render(Some(metrics), Dialect::Prometheus);
            lines(&text, "tokend_").join("\n")
        };
        let mut metrics = metrics(Vec::new());
        let first =
            "tokend_up 1\ntokend_build_info{version=\"9.8.7\"} 1\ntokend_start_time_seconds 1700000000.123";
        let operators = |is_good| {
            format!(
                "{first}\ntokend_connections 2\ntokend_last_reload_successful {is_good}\n\
                 tokend_resident_memory_bytes 4194304"
            )
        };
        assert_eq!(of_daemon(&metrics), operators(1));
        metrics.daemon.reload_failed_at = Some(Timestamp(1));
        assert_eq!(of_daemon(&metrics), operators(0));
        metrics.daemon.pid = 0;
        assert_eq!(of_daemon(&metrics), first, "only operators see these");
        let text = render(None, Dialect::Prometheus);
        assert_eq!(lines(&text, "tokend_"), ["tokend_up 0"]);
    }

    #[test]
    fn the_two_formats_name_counters_differently() {
        let metrics = metrics(vec![token("psb", "bank")]);
        let [prometheus, open] =
            [Dialect::Prometheus, Dialect::OpenMetrics].map(|dialect| render(Some(&metrics), dialect));
        let counter = |name: &str| {
            format!(
                "# HELP {name} Hand-outs of the token since the daemon started.\n# TYPE {name} \
                 counter\ntokend_token_hand_outs_total{{token=\"psb\",provider=\"bank\"}} 0\n"
            )
        };
        assert!(prometheus.contains(&counter("tokend_token_hand_outs_total")), "{prometheus}");
        assert!(open.contains(&counter("tokend_token_hand_outs")), "{open}");
        for text in [prometheus, open] {
            assert!(text.contains(
                "# TYPE tokend_start_time_seconds gauge\n# UNIT tokend_start_time_seconds seconds\n"
            ));
            assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
        }
    }

    #[test]
    fn many_tokens_are_only_counted() {
        let tokens = |count: usize, providers: usize| {
            let token = |number| TokenStatus {
                state: STATES[number % 2],
                ..token(&format!("t{number}"), &format!("p{}", number % providers))
            };
            render(Some(&metrics((0..count).map(token).collect())), Dialect::Prometheus)
        };
        let all = tokens(DETAILED_MAX, 2);
        assert_eq!(lines(&all, "tokend_token_hand_outs_total").len(), DETAILED_MAX);
        assert_eq!(lines(&all, "tokend_tokens{").len(), 12, "six states of two providers");
        let counted = tokens(DETAILED_MAX + 1, 3);
        assert_eq!(lines(&counted, "tokend_token_"), [""; 0]);
        assert!(counted.contains("tokend_tokens{provider=\"p2\",state=\"refreshing\"} 166\n"), "{counted}");
        let many = tokens(DETAILED_MAX + 1, DETAILED_MAX + 1);
        assert_eq!(lines(&many, "tokend_tokens{").len(), 6);
        assert!(many.contains("tokend_tokens{provider=\"\",state=\"fresh\"} 501\n"), "{many}");
    }

    #[test]
    fn a_label_cannot_end_its_line() {
        let text = render(Some(&metrics(vec![token("t", "a\"b\\c\nd")])), Dialect::Prometheus);
        assert!(
            text.contains(r#"tokend_token_hand_outs_total{token="t",provider="a\"b\\c\nd"} 0"#),
            "{text}"
        );
    }
}
