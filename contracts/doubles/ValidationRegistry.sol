// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

interface IOwners {
    function ownerOf(uint256 agentId) external view returns (address);
}

/// Stands in for ERC-8004's validation registry (draft of 2026-08): its selectors, events and traps, written anew.
/// The traps are kept on purpose: any owner of any agent may take a request's hash, the last response overwrites the others, and a
/// response of 0 without a hash reads like none.
contract ValidationRegistry {
    struct Status {
        address validator;
        uint256 agentId;
        uint8 response;
        bytes32 responseHash;
        string tag;
        uint256 lastUpdate;
    }

    address private immutable _identities;
    mapping(bytes32 requestHash => Status) private _statuses;
    mapping(uint256 agentId => bytes32[]) private _ofAgent;
    mapping(address validator => bytes32[]) private _ofValidator;

    event ValidationRequest(
        address indexed validatorAddress, uint256 indexed agentId, string requestURI, bytes32 indexed requestHash
    );
    event ValidationResponse(
        address indexed validatorAddress,
        uint256 indexed agentId,
        bytes32 indexed requestHash,
        uint8 response,
        string responseURI,
        bytes32 responseHash,
        string tag
    );

    constructor(address identities) {
        _identities = identities;
    }

    function getIdentityRegistry() external view returns (address) {
        return _identities;
    }

    function validationRequest(
        address validatorAddress,
        uint256 agentId,
        string calldata requestURI,
        bytes32 requestHash
    ) external {
        require(validatorAddress != address(0), "bad validator");
        require(_statuses[requestHash].validator == address(0), "exists");
        require(IOwners(_identities).ownerOf(agentId) == msg.sender, "Not authorized");
        _statuses[requestHash] = Status(validatorAddress, agentId, 0, 0, "", block.timestamp);
        _ofAgent[agentId].push(requestHash);
        _ofValidator[validatorAddress].push(requestHash);
        emit ValidationRequest(validatorAddress, agentId, requestURI, requestHash);
    }

    function validationResponse(
        bytes32 requestHash,
        uint8 response,
        string calldata responseURI,
        bytes32 responseHash,
        string calldata tag
    ) external {
        Status storage status = _statuses[requestHash];
        require(response <= 100, "resp>100");
        require(status.validator != address(0), "unknown");
        require(status.validator == msg.sender, "not validator");
        (status.response, status.responseHash, status.tag, status.lastUpdate) =
            (response, responseHash, tag, block.timestamp);
        emit ValidationResponse(msg.sender, status.agentId, requestHash, response, responseURI, responseHash, tag);
    }

    function getValidationStatus(bytes32 requestHash)
        external
        view
        returns (
            address validatorAddress,
            uint256 agentId,
            uint8 response,
            bytes32 responseHash,
            string memory tag,
            uint256 lastUpdate
        )
    {
        Status storage s = _statuses[requestHash];
        require(s.validator != address(0), "unknown");
        return (s.validator, s.agentId, s.response, s.responseHash, s.tag, s.lastUpdate);
    }

    function getAgentValidations(uint256 agentId) external view returns (bytes32[] memory) {
        return _ofAgent[agentId];
    }

    function getValidatorRequests(address validatorAddress) external view returns (bytes32[] memory) {
        return _ofValidator[validatorAddress];
    }
}
