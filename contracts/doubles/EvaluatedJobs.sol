// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

interface IPayment {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// Stands in for ERC-8183 (draft of 2026-02-25): one token, no hooks, no fees; the states and who may move them, as the text has it.
contract EvaluatedJobs {
    enum Status {
        Open,
        Funded,
        Submitted,
        Completed,
        Rejected,
        Expired
    }

    struct Job {
        address client;
        address provider;
        address evaluator;
        uint256 budget;
        uint256 expiredAt;
        Status status;
        bytes32 deliverable;
        string description;
    }

    address public immutable paymentToken;
    Job[] private _jobs;

    event JobCreated(uint256 indexed jobId, address indexed client, address indexed provider, address evaluator);
    event JobSubmitted(uint256 indexed jobId, address indexed provider, bytes32 deliverable);
    event JobCompleted(uint256 indexed jobId, address indexed evaluator, bytes32 reason);
    event JobRejected(uint256 indexed jobId, address indexed rejector, bytes32 reason);

    error InvalidStatus(Status status);
    error Unauthorized(address caller);

    constructor(address token) {
        paymentToken = token;
    }

    function createJob(
        address provider,
        address evaluator,
        uint256 expiredAt,
        string calldata description,
        address /* hook */
    ) external returns (uint256 jobId) {
        require(evaluator != address(0) && evaluator != provider && expiredAt > block.timestamp, "bad job");
        jobId = _jobs.length;
        _jobs.push(Job(msg.sender, provider, evaluator, 0, expiredAt, Status.Open, 0, description));
        emit JobCreated(jobId, msg.sender, provider, evaluator);
    }

    function getJob(uint256 jobId) external view returns (Job memory) {
        return _jobs[jobId];
    }

    function setBudget(uint256 jobId, uint256 amount) external {
        Job storage job = _in(jobId, Status.Open);
        if (msg.sender != job.client && msg.sender != job.provider) revert Unauthorized(msg.sender);
        job.budget = amount;
    }

    function fund(uint256 jobId, uint256 expectedBudget) external {
        Job storage job = _by(_in(jobId, Status.Open), _jobs[jobId].client);
        require(job.provider != address(0) && job.budget != 0 && job.budget == expectedBudget, "bad budget");
        job.status = Status.Funded;
        require(IPayment(paymentToken).transferFrom(msg.sender, address(this), job.budget));
    }

    function submit(uint256 jobId, bytes32 deliverable) external {
        Job storage job = _by(_in(jobId, Status.Funded), _jobs[jobId].provider);
        job.status = Status.Submitted;
        job.deliverable = deliverable;
        emit JobSubmitted(jobId, msg.sender, deliverable);
    }

    function complete(uint256 jobId, bytes32 reason) external {
        Job storage job = _by(_in(jobId, Status.Submitted), _jobs[jobId].evaluator);
        emit JobCompleted(jobId, msg.sender, reason);
        _end(job, Status.Completed, job.provider);
    }

    function reject(uint256 jobId, bytes32 reason) external {
        Job storage job = _jobs[jobId];
        if (job.status > Status.Submitted) revert InvalidStatus(job.status);
        _by(job, job.status == Status.Open ? job.client : job.evaluator);
        emit JobRejected(jobId, msg.sender, reason);
        _end(job, Status.Rejected, job.client);
    }

    /// Only what was paid in comes back: an open job that expired has nothing here.
    function claimRefund(uint256 jobId) external {
        Job storage job = _jobs[jobId];
        if (job.status != Status.Funded && job.status != Status.Submitted) revert InvalidStatus(job.status);
        require(block.timestamp >= job.expiredAt, "not expired");
        _end(job, Status.Expired, job.client);
    }

    function _in(uint256 jobId, Status status) private view returns (Job storage job) {
        job = _jobs[jobId];
        if (job.status != status) revert InvalidStatus(job.status);
    }

    function _by(Job storage job, address allowed) private view returns (Job storage) {
        if (msg.sender != allowed) revert Unauthorized(msg.sender);
        return job;
    }

    function _end(Job storage job, Status status, address to) private {
        bool paid = job.status != Status.Open;
        job.status = status;
        if (paid) require(IPayment(paymentToken).transfer(to, job.budget));
    }
}
