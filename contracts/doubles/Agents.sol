// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// Stands in for ERC-8004's identity registry: owners of agents and their wallets, nothing else.
contract Agents {
    uint256 private _count;
    mapping(uint256 agentId => address) public ownerOf;
    mapping(uint256 agentId => address) public getAgentWallet;

    function register(string calldata) external returns (uint256 agentId) {
        agentId = _count++;
        ownerOf[agentId] = msg.sender;
        getAgentWallet[agentId] = msg.sender;
    }

    /// As when an agent is sold: the standard clears the wallet.
    function clearAgentWallet(uint256 agentId) external {
        require(msg.sender == ownerOf[agentId], "Not authorized");
        getAgentWallet[agentId] = address(0);
    }
}
