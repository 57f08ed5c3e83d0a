// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

interface IPayment {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// Stands in for ERC-8183 (draft of 2026-02-25): the states and who may move them by its text, written anew; the functions that evaluator,
/// provider and client call have the selectors of its reference contract (base-contracts at 0310b99), whose last argument is for hooks.
/// No hooks, no fees, no claims. As there, the provider names token and budget, and may change both until the client pays.
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
        Status status;
        address provider;
        uint48 expiredAt;
        address evaluator;
        uint256 budget;
        address paymentToken;
        uint256 providerAgentId;
        string description;
    }

    Job[] private _jobs;

    event JobCreated(
        uint256 indexed jobId,
        address indexed client,
        address indexed provider,
        address evaluator,
        uint48 expiredAt,
        address hook
    );
    event JobSubmitted(uint256 indexed jobId, address indexed provider, bytes32 deliverable);
    event JobCompleted(uint256 indexed jobId, address indexed evaluator, bytes32 reason);
    event JobRejected(uint256 indexed jobId, address indexed rejector, bytes32 reason);

    error WrongStatus();
    error Unauthorized();
    error ProviderCannotBeEvaluator();
    error PaymentTokenMismatch();
    error BudgetMismatch();

    function createJob(
        address provider,
        address evaluator,
        uint48 expiredAt,
        string calldata description,
        address hook,
        uint256 providerAgentId
    ) external returns (uint256 jobId) {
        require(evaluator != address(0) && hook == address(0) && expiredAt > block.timestamp, "bad job");
        if (evaluator == provider) revert ProviderCannotBeEvaluator();
        jobId = _jobs.length;
        _jobs.push(
            Job(msg.sender, Status.Open, provider, expiredAt, evaluator, 0, address(0), providerAgentId, description)
        );
        emit JobCreated(jobId, msg.sender, provider, evaluator, expiredAt, hook);
    }

    function getJob(uint256 jobId) external view returns (Job memory) {
        return _jobs[jobId];
    }

    function setBudget(uint256 jobId, address token, uint256 amount, bytes calldata) external {
        Job storage job = _by(_in(jobId, Status.Open), _jobs[jobId].provider);
        (job.paymentToken, job.budget) = (token, amount);
    }

    function fund(uint256 jobId, address expectedToken, uint256 expectedBudget, bytes calldata) external {
        Job storage job = _by(_in(jobId, Status.Open), _jobs[jobId].client);
        if (job.paymentToken != expectedToken) revert PaymentTokenMismatch();
        if (job.budget != expectedBudget) revert BudgetMismatch();
        job.status = Status.Funded;
        require(IPayment(job.paymentToken).transferFrom(msg.sender, address(this), job.budget));
    }

    function submit(uint256 jobId, bytes32 deliverable, bytes calldata) external {
        Job storage job = _by(_in(jobId, Status.Funded), _jobs[jobId].provider);
        job.status = Status.Submitted;
        emit JobSubmitted(jobId, msg.sender, deliverable);
    }

    function complete(uint256 jobId, bytes32 reason, bytes calldata) external {
        Job storage job = _by(_in(jobId, Status.Submitted), _jobs[jobId].evaluator);
        emit JobCompleted(jobId, msg.sender, reason);
        _end(job, Status.Completed, job.provider);
    }

    function reject(uint256 jobId, bytes32 reason, bytes calldata) external {
        Job storage job = _jobs[jobId];
        if (job.status > Status.Submitted) revert WrongStatus();
        _by(job, job.status == Status.Open ? job.client : job.evaluator);
        emit JobRejected(jobId, msg.sender, reason);
        _end(job, Status.Rejected, job.client);
    }

    /// Only what was paid in comes back: an open job that expired has nothing here.
    function claimRefund(uint256 jobId, bytes calldata) external {
        Job storage job = _jobs[jobId];
        if (job.status != Status.Funded && job.status != Status.Submitted) revert WrongStatus();
        require(block.timestamp >= job.expiredAt, "not expired");
        _end(job, Status.Expired, job.client);
    }

    function _in(uint256 jobId, Status status) private view returns (Job storage job) {
        job = _jobs[jobId];
        if (job.status != status) revert WrongStatus();
    }

    function _by(Job storage job, address allowed) private view returns (Job storage) {
        if (msg.sender != allowed) revert Unauthorized();
        return job;
    }

    function _end(Job storage job, Status status, address to) private {
        bool paid = job.status != Status.Open;
        job.status = status;
        if (paid) require(IPayment(job.paymentToken).transfer(to, job.budget));
    }
}
