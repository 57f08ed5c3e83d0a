"""The nouns: frozen records that travel between rooms, with the unit in each number's name.

Nothing here computes. A value nobody could read is `None`, never 0. Money is `Decimal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

__all__ = [
    "Activity",
    "Attempt",
    "Capability",
    "Ceiling",
    "Challenge",
    "CostLine",
    "Device",
    "Energy",
    "Environment",
    "Factor",
    "Failed",
    "Fault",
    "Inputs",
    "Interval",
    "Job",
    "Measurement",
    "NativePrice",
    "Node",
    "Note",
    "Outcome",
    "Preflight",
    "ProvenWork",
    "Quote",
    "Rate",
    "Record",
    "Report",
    "Round",
    "Score",
    "ScorePart",
    "Seal",
    "Skipped",
    "Soak",
    "TelemetrySample",
    "Terms",
    "Transcript",
    "Verdict",
    "Work",
]

AttemptEnd = Literal[
    "wrong_answer", "failed", "crashed", "timeout", "out_of_memory", "lost", "contended", "aborted", "late"
]
Cache = Literal["cold", "hot", "n/a"]
ComputeMode = Literal["default", "exclusive_thread", "prohibited", "exclusive_process"]
DeviceKind = Literal["cpu", "cuda"]
EnergyScope = Literal["gpu", "module"]  # a module's energy includes the CPU beside the GPU
FailureKind = Literal["wrong_answer", "failed", "crashed", "timeout", "out_of_memory", "lost", "contended"]
Metric = Literal["compute", "bandwidth", "throughput", "latency"]
EnergySource = Literal["counter", "power"]
Param = int | float | str
Params = Mapping[str, Param]
Regime = Literal["burst", "sustained"]
SensorState = Literal["ok", "not_supported", "no_permission", "error"]
Severity = Literal["refuse", "tag", "info"]  # do not measure; measure and say so; nothing was lost by it
State = Literal[
    "valid",
    "power_capped",
    "thermally_limited",
    "throttled",
    "noisy",
    "drifting",
    "not_steady",
    "invalid",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a device says of itself. A claim until something has been measured on it."""

    uuid: str
    name: str
    kind: DeviceKind
    selector: str  # how `--device` names it on its own node: cpu, cuda:0, cuda:1
    emulated: bool = False
    unusable_reason: str | None = None  # seen, but nothing can run on it
    memory_bytes: int | None = None
    l1_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None  # of all its slices together
    compute_capability: str | None = None
    sm_count: int | None = None
    core_count: int | None = None
    thread_count: int | None = None
    isa: tuple[str, ...] = ()
    serial: str | None = None
    pci_bus_id: str | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    vbios: str | None = None
    driver: str | None = None
    mig_enabled: bool | None = None
    ecc_enabled: bool | None = None
    power_limit_w: float | None = None
    power_default_limit_w: float | None = None
    power_min_limit_w: float | None = None
    power_max_limit_w: float | None = None
    energy_scope: EnergyScope | None = None
    memory_bus_bits: int | None = None
    memory_clock_max_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    persistence_mode: bool | None = None
    compute_mode: ComputeMode | None = None
    display_active: bool | None = None
    remapped_corrected_count: int | None = None  # rows of memory replaced since the board was made
    remapped_uncorrected_count: int | None = None
    remapping_pending: bool | None = None
    remapping_failed: bool | None = None
    sensors: Mapping[str, SensorState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one run does, by arithmetic alone: never measured, never rounded."""

    flops: int = 0
    bytes_moved: int = 0
    items: int = 0
    item: str = ""  # singular name of what `items` counts: hash, hop, launch
    counting: str = ""  # the convention: "read + written", "one way", "busbw"
    nominal: bool = False  # a count by convention: the code may do more or less, so nobody checks it against the code


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySample:
    """One look at the sensors, `at_s` seconds after the measurement began."""

    at_s: float
    power_w: float | None = None  # at this instant where the driver can say so
    power_average_w: float | None = None  # over the last second, where the driver tells both
    energy_j: float | None = None  # cumulative since an unknown start
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    utilization_fraction: float | None = None
    memory_utilization_fraction: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    throttle_s: Mapping[str, float] | None = None  # per cause, since an unknown start; the counter read as nanoseconds
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_tx_bytes_per_s: int | None = None
    pcie_rx_bytes_per_s: int | None = None
    ecc_corrected_count: int | None = None
    ecc_uncorrected_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Samples taken back to back. Each sample times `batch` runs and stores the time of one."""

    at_s: float
    batch: int
    times_s: tuple[float, ...]
    host_time_s: float | None = None  # median of the same by the host's clock
    clock_mhz: float | None = None  # mean over the round, from the device's own counters
    discarded: str | None = None  # why it does not count


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """The load before a sustained measurement, and whether the device had come to rest under it."""

    elapsed_s: float
    steady: bool | None  # None: no sensor could tell
    temperature_c_per_min: float | None
    clock_fraction_per_min: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy spent between two edges of the sensor's own ticks, and the runs done between them."""

    joules: float
    window_s: float
    run_count: float  # interpolated at the edges
    source: EnergySource
    scope: Literal["gpu", "module", "package"]  # a module's reading includes its CPU
    integral_j: float | None  # the same window by power over time, where `source` is the counter
    disputed: str | None  # why it may not be believed
    idle_power_w: float | None  # of the device before it had work


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the random inputs looked like: constant ones would flatter power and clock."""

    distribution: str
    entropy_bits_per_byte: float  # of a sample; 8 is noise, 0 a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """The rate that the hardware cannot pass at the clock it was seen to run at."""

    rate_per_s: float
    reached_fraction: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What the device's own counters say it did over some time: shares of that time, or of the most there is."""

    window_s: float
    during: Literal["warmup", "rounds"] = "rounds"
    busy_fraction: float | None = None  # of the window: the runs in it times the time claimed for one
    sm_fraction: float | None = None  # multiprocessors that had work
    sm_occupancy_fraction: float | None = None  # warps, of the most that fit
    integer_fraction: float | None = None
    tensor_fraction: float | None = None  # any tensor pipe
    dfma_tensor_fraction: float | None = None  # float64
    hmma_tensor_fraction: float | None = None  # float16 and its kin
    imma_tensor_fraction: float | None = None  # integers
    dram_fraction: float | None = None  # of the memory's bandwidth
    fp64_fraction: float | None = None  # not counting tensor pipes, as the two below
    fp32_fraction: float | None = None
    fp16_fraction: float | None = None
    pcie_tx_bytes_per_s: float | None = None
    pcie_rx_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A two-sided confidence interval of the time of one run."""

    low_s: float
    high_s: float
    confidence_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One cell of a plan: one point of one benchmark on one device."""

    benchmark: str
    version: int
    params: Params
    device_uuid: str
    seed: str  # 16 hex digits
    regime: Regime = "burst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A timed, checked result with every raw time and what the sensors said meanwhile."""

    job: Job
    started_at: str  # UTC, RFC 3339
    elapsed_s: float
    work: Work
    metric: Metric
    state: State
    reason: str
    time_s: float  # mean of the rounds' medians: the time of one run
    interval: Interval
    warmup_times_s: tuple[float, ...]
    rounds: tuple[Round, ...]
    telemetry: tuple[TelemetrySample, ...]
    telemetry_lost: str | None  # why the sensors stopped answering, if they did
    answer_digest: str
    loaded_s: float | None = None  # of `elapsed_s`, spent running the case: warm-up, soak, and what was timed
    cache: Cache = "n/a"
    footprint_bytes: int | None = None
    inputs: Inputs | None = None
    launches_hidden: bool = False  # queued behind a kernel that waits, so that the time of launching is not in them
    clock_mhz: float | None = None  # mean over the rounds that count
    soak: Soak | None = None
    energy: Energy | None = None
    ceiling: Ceiling | None = None
    activity: Activity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A point that this device cannot run, and why."""

    job: Job
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A point that was tried and did not end in a measurement."""

    job: Job
    started_at: str
    elapsed_s: float
    outcome: FailureKind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a job that did not become its outcome. All are kept: who shows the best of several tries must be seen to."""

    number: int
    started_at: str
    elapsed_s: float
    ended: AttemptEnd
    reason: str
    place: str | None = None  # of the node in its cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job ended in: exactly one of the three, after the attempts that came to nothing."""

    measurement: Measurement | None = None
    skipped: Skipped | None = None
    failed: Failed | None = None
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who reports. The name is only a label; the seal's public key is the identity."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the measurements ran under."""

    harness_version: str
    python: str
    os: str
    packages: Mapping[str, str]
    cpu_limit_count: int | None  # processors this process may use
    niceness: int | None
    load_average_1min: float | None
    memory_free_bytes: int | None
    governor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing about a device or its node that makes results worse or unsafe, and what would mend it."""

    severity: Severity
    what: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was seen of a device before it had work."""

    device_uuid: str
    idle_power_w: float | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Binds a report: a digest of each outcome, one over the whole, and a signature if there is a key."""

    outcomes: tuple[str, ...]  # SHA-256 of each outcome's canonical bytes, in the order of arrival
    digest: str  # SHA-256 of the report without its outcomes and with `digest` and `signature` empty
    algorithm: Literal["ed25519", "unsigned"]
    public_key: str | None
    signature: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one node measured in one run."""

    schema: Literal["harness.report/2"]
    created_at: str
    sealed_at: str
    node: Node
    environment: Environment
    devices: tuple[Device, ...]
    preflight: tuple[Preflight, ...]
    emulated: bool
    preset: str
    seed: str
    plan: tuple[Job, ...]
    outcomes: tuple[Outcome, ...]
    previous: str | None  # digest of this node's report before this one
    seal: Seal


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a verifier asks of one device: fresh, addressed, and good once."""

    schema: Literal["harness.challenge/2"]
    nonce: str  # the verifier's own random bits, 64 hex digits
    beacon: str | None  # a public random value that nobody could know before; None where there was none
    provider: str  # the public key of who is to answer, or another name of theirs
    device_uuid: str
    epoch: int
    params: Params  # mode, n, steps, openings, scans, scan_openings
    issued_at: str
    expires_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What a prover answered to a challenge. The openings themselves, megabytes of numbers, follow it in its file."""

    schema: Literal["harness.transcript/2"]
    challenge: Challenge
    commitment: str  # root over every state of the work
    scan_key: str | None  # what the verifier sent to begin the scans of memory
    scan_roots: tuple[str, ...]  # one a scan, each the key of the next
    asked: str | None  # the verifier's nonce that chose the openings; None where the commitment alone chose them
    openings_digest: str
    elapsed_s: float  # by the prover's own clock: a claim
    public_key: str | None
    signature: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenWork:
    """Lower bounds that follow from an accepted transcript, at one confidence; None where nothing was proven."""

    mode: str
    operations_count: float  # what an honest prover does; a multiply-add is two
    least_operations_count: float  # what must have been done, or the verdict would be a refusal with this confidence
    skipped_most_fraction: float  # of the operations
    confidence_fraction: float
    wall_s: float | None  # by the verifier's clock
    least_operations_per_s: float | None
    most_operations_per_s: float | None  # if the network took the shortest time ever seen
    resident_bytes: int | None
    least_read_bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a document: where, and what."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What checking a document established, and what it did not."""

    subject: str  # the file or digest judged
    digest: str | None
    accepted: bool
    signed_by: str | None
    complete: bool
    faults: tuple[Fault, ...]
    proven: tuple[str, ...]
    not_proven: tuple[str, ...]
    work: ProvenWork | None = None  # of a transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A proven lower bound of one class of work, and the outcome it comes from."""

    work_class: str  # gemm_fp16, mem, ...
    low_per_s: float
    high_per_s: float
    unit: str
    state: State
    regime: Regime
    point: str  # the benchmark with its parameters, as people name it
    evidence: str  # digest of the outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a device was seen to do."""

    report_digest: str
    device_uuid: str
    device_name: str
    kind: DeviceKind
    emulated: bool
    memory_bytes: int | None
    power_w: float | None  # mean while busy, from the energy counter or the power samples
    power_limit_w: float | None
    rates: tuple[Rate, ...]
    uncounted: tuple[str, ...]  # classes of work that were tried, and no result of them counts
    counted_count: int  # results that may enter a score
    excluded: tuple[str, ...]  # results left out, with the reason
    ailments: tuple[str, ...]  # what the card itself or its driver admits is wrong with it


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePart:
    """One class's share in a score."""

    work_class: str
    weight_fraction: float
    relative_speed: float  # against the reference node; dimensionless
    regime: Regime
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Speed on a workload profile against the reference node: compute units per hour."""

    report_digest: str
    device_uuid: str
    device_name: str
    kind: DeviceKind
    emulated: bool
    profile: str
    unit: str
    cu_per_hour: float | None  # None where a class of the profile was not measured, or its memory does not fit
    high_cu_per_hour: float | None
    cycles_per_s: int | None  # the same, whole: the reference node does a million
    too_small: str | None  # why the profile does not fit into the device's memory
    parts: tuple[ScorePart, ...]
    missing: tuple[str, ...]
    excluded: tuple[str, ...]
    reference_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """One line of a price's breakdown."""

    name: str
    usd_per_hour: Decimal
    basis: str  # measured, rated, given, assumed, market, computed; then how


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One thing that a price was multiplied by."""

    name: str
    times: str  # a decimal as text: it is no money
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePrice:
    """What so many units of what one benchmark counts cost at the price of an hour: tokens, FLOP, bytes, hashes."""

    work_class: str
    unit: str
    batch_count: int
    usd_per_batch: Decimal
    point: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a device's earlier reports say of it: jobs that ended as they should, and how fast it was in each report."""

    report_digests: tuple[str, ...]
    good_count: int
    bad_count: int
    cycles_per_s: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """All that a quote depends on beside the report and the package's data, so that anybody can ask for it again."""

    basis: Literal["market", "cost"]
    profile: str
    shares: Mapping[str, str]  # decimals as text, of a profile of the user's own; empty for one of ours
    profile_memory_bytes: int | None
    costs: Mapping[str, str]  # decimals as text, as the owner gave them
    segment: str
    provider: str | None
    at: str  # UTC, RFC 3339: for when the market is to be read
    spot: bool
    term_s: int
    interruptions_per_hour: str | None  # a decimal as text
    checkpoint_s: int | None
    restart_s: int | None
    congestion: str  # a decimal as text, from the controller; 1 is at rest
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A price with its derivation, or the reason why there is none."""

    schema: Literal["harness.quote/2"]
    report_digest: str
    device_uuid: str
    device_name: str
    kind: DeviceKind
    emulated: bool
    status: Literal["priced", "withheld"]
    reasons: tuple[str, ...]
    for_gpu_market: bool
    currency: Literal["USD"]
    method: Literal["market", "cost"]
    terms: Terms
    floor_usd_per_hour: Decimal | None  # below it, standing idle is cheaper: a price is never lower
    sustainable_usd_per_hour: Decimal | None  # with the purchase and a margin: advice to the owner
    price_usd_per_hour: Decimal | None
    low_usd_per_hour: Decimal | None  # the interval in which four of five such prices lie; None for a price by cost
    high_usd_per_hour: Decimal | None
    price_usd_per_cu_hour: Decimal | None
    price_usd_per_mcycle: Decimal | None
    native: tuple[NativePrice, ...]
    profile: str
    unit: str
    cycles_per_s: int | None
    breakdown: tuple[CostLine, ...]
    factors: tuple[Factor, ...]
    issued_at: str
    valid_for_s: int
    evidence: tuple[str, ...]  # digests of the outcomes that the speed follows from
    digests: Mapping[str, str]  # of the package's data and of the profile
