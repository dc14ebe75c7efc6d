//! The figures of a simulation.

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub events: u64,
    pub sent: u64,
    /// What a planner would have sent who knows each lifetime in advance and renews at the last moment.
    pub least: f64,
    /// Of plain tokens: renewals, and the least.
    pub plain: (u64, f64),
    pub retries: u64,
    pub wished: u64,
    pub failed: u64,
    pub calls: u64,
    pub served: u64,
    pub waited: u64,
    pub troubles: u64,
    pub suspends: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.sent += other.sent;
        self.least += other.least;
        self.plain = (self.plain.0 + other.plain.0, self.plain.1 + other.plain.1);
        self.retries += other.retries;
        self.wished += other.wished;
        self.failed += other.failed;
        self.calls += other.calls;
        self.served += other.served;
        self.waited += other.waited;
        self.troubles += other.troubles;
        self.suspends += other.suspends;
    }
}
