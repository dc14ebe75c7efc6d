//! The examples of each command, for its help and its manual page.

pub(super) const GET: &str = "\
Examples:
  tokenctl get psb
  tokenctl get psb --min-ttl 5m --scope aisp";

pub(super) const HEADERS: &str = "\
Examples:
  tokenctl headers psb | curl -H @- https://api.example/accounts
  tokenctl headers partner -H 'Requestor-ID: 4711' | curl -H @- https://api.example/";

pub(super) const EXEC: &str = "\
Examples:
  tokenctl exec psb -- ./report.sh
  tokenctl exec psb --env API_TOKEN -- ./report.sh --month 7";

pub(super) const SYNC: &str = "\
Examples:
  tokenctl sync psb --file /run/report/token
  tokenctl sync psb --file token.env --format env --mode 0640 --then ./reload.sh";

pub(super) const LIST: &str = "\
Examples:
  tokenctl list
  tokenctl list | xargs -n 1 tokenctl status";

pub(super) const STATUS: &str = "\
Examples:
  tokenctl status
  tokenctl status psb --exit-status
  tokenctl status --json | jq '.tokens[] | select(.state != \"fresh\") | .name'";

pub(super) const TOP: &str = "\
Examples:
  tokenctl top";

pub(super) const METRICS: &str = "\
Examples:
  tokenctl metrics >/var/lib/prometheus/node-exporter/tokend.prom.$$ &&
    mv /var/lib/prometheus/node-exporter/tokend.prom.$$ /var/lib/prometheus/node-exporter/tokend.prom
  tokenctl metrics --listen";

pub(super) const REFRESH: &str = "\
Examples:
  tokenctl refresh psb
  tokenctl refresh psb --deadline 1m";

pub(super) const REJECT: &str = "\
Examples:
  tokenctl reject psb
  tokenctl reject psb --fingerprint 00f1e2d3c4b5a697";

pub(super) const WATCH: &str = "\
Examples:
  tokenctl watch psb
  tokenctl watch psb bnp --json";

pub(super) const WAIT: &str = "\
Examples:
  tokenctl wait psb --for valid --deadline 2m && ./report.sh";

pub(super) const EXPLAIN: &str = "\
Examples:
  tokenctl explain psb
  tokenctl explain psb --unit billing.service
  tokenctl explain psb --user billing --scope aisp";

pub(super) const VERSION: &str = "\
Examples:
  tokenctl version
  tokenctl version --json";

pub(super) const COMPLETIONS: &str = "\
Examples:
  source <(tokenctl completions bash)";

pub(super) const MAN: &str = "\
Examples:
  tokenctl man | man -l -
  tokenctl man /usr/local/share/man/man1";

pub(super) const KUBECTL: &str = "\
Examples:
  kubectl config set-credentials me --exec-command=tokenctl --exec-arg=helper,kubectl,NAME \\
    --exec-api-version=client.authentication.k8s.io/v1 --exec-interactive-mode=Never";

pub(super) const GIT: &str = "\
Examples:
  git config --global credential.https://git.example.helper '!tokenctl helper git NAME'";

pub(super) const DOCKER: &str = "\
Examples:
  echo https://registry.example | tokenctl helper docker NAME get";

pub(super) const BAZEL: &str = "\
Examples:
  echo '{\"uri\": \"https://cache.example/\"}' | tokenctl helper bazel NAME get";

pub(super) const GOOGLE: &str = "\
Examples:
  { \"credential_source\": { \"executable\": { \"command\": \"tokenctl helper google NAME\" } } }";
