// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// A price for compute as harness signs it (harness/market/offers/offer.py): EIP-712, name "GPU Compute Quote", version "1".
struct ComputeQuote {
    bytes32 quoteId;
    uint32 revision;
    bytes32 supersedes;
    address provider; // who signs
    address agentRegistry; // ERC-8004 identities, or zero
    uint256 agentId;
    address payTo;
    address asset; // ERC-20
    uint8 assetDecimals;
    string unit;
    uint256 unitPriceAtomic; // of 10^priceScale units
    uint8 priceScale;
    uint256 minUnits;
    uint256 maxUnits;
    uint256 maxTotalAtomic;
    uint64 validAfter;
    uint64 validUntil;
    uint64 evidenceUntil; // the benchmark's freshness, apart from the price's
    uint256 nonce;
    bytes32 evidenceRoot;
    bytes32 slaHash;
    bytes32 scoringHash;
    bytes32 deviceCommitment;
    address evaluator;
    address escrow; // the domain's verifyingContract, or zero
}

/// Recomputes the digest of a quote for this chain, and says who signed it.
/// Promised: one signature for one quote on one chain for one escrow; no second spelling of a signature; nothing before or after its time.
/// Not promised: contract wallets (ERC-1271). That a quote was not used before is the escrow's to know.
contract QuoteVerifier {
    bytes32 public constant QUOTE_TYPEHASH = keccak256(
        "ComputeQuote(bytes32 quoteId,uint32 revision,bytes32 supersedes,address provider,address agentRegistry,uint256 agentId,address payTo,address asset,uint8 assetDecimals,string unit,uint256 unitPriceAtomic,uint8 priceScale,uint256 minUnits,uint256 maxUnits,uint256 maxTotalAtomic,uint64 validAfter,uint64 validUntil,uint64 evidenceUntil,uint256 nonce,bytes32 evidenceRoot,bytes32 slaHash,bytes32 scoringHash,bytes32 deviceCommitment,address evaluator,address escrow)"
    );
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    // Half of the curve's order: above it lies the twin of a signature that everybody can compute.
    uint256 private constant MOST_S = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    error SignatureLength(uint256 length);
    error SignatureIsTwin();
    error SignatureRecovery(uint8 v);
    error NotSignedBy(address provider, address recovered);
    error NotYetValid(uint64 validAfter);
    error Expired(uint64 validUntil);
    error StaleEvidence(uint64 evidenceUntil);

    function domainSeparator(address escrow) public view returns (bytes32) {
        return keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256("GPU Compute Quote"), keccak256("1"), block.chainid, escrow)
        );
    }

    /// The EIP-712 digest on this chain: other chains give another.
    function digestOf(ComputeQuote calldata q) public view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domainSeparator(q.escrow), _structHash(q)));
    }

    /// Return the digest of a quote that its provider signed and that is good now; revert otherwise.
    function verify(ComputeQuote calldata q, bytes calldata signature) public view returns (bytes32 digest) {
        if (block.timestamp < q.validAfter) revert NotYetValid(q.validAfter);
        if (block.timestamp >= q.validUntil) revert Expired(q.validUntil);
        if (block.timestamp >= q.evidenceUntil) revert StaleEvidence(q.evidenceUntil);
        digest = digestOf(q);
        address signer = _recover(digest, signature);
        if (signer == address(0) || signer != q.provider) revert NotSignedBy(q.provider, signer);
    }

    function _recover(bytes32 digest, bytes calldata signature) private pure returns (address) {
        if (signature.length != 65) revert SignatureLength(signature.length);
        uint8 v = uint8(signature[64]);
        if (v != 27 && v != 28) revert SignatureRecovery(v);
        if (uint256(bytes32(signature[32:64])) > MOST_S) revert SignatureIsTwin();
        return ecrecover(digest, v, bytes32(signature[:32]), bytes32(signature[32:64]));
    }

    /// In parts, as the compiler's stack holds no 26 values at once.
    function _structHash(ComputeQuote calldata q) private pure returns (bytes32) {
        return keccak256(bytes.concat(_who(q), _price(q), _terms(q)));
    }

    function _who(ComputeQuote calldata q) private pure returns (bytes memory) {
        return abi.encode(
            QUOTE_TYPEHASH, q.quoteId, q.revision, q.supersedes, q.provider, q.agentRegistry, q.agentId, q.payTo, q.asset
        );
    }

    function _price(ComputeQuote calldata q) private pure returns (bytes memory) {
        return abi.encode(
            q.assetDecimals,
            keccak256(bytes(q.unit)),
            q.unitPriceAtomic,
            q.priceScale,
            q.minUnits,
            q.maxUnits,
            q.maxTotalAtomic
        );
    }

    function _terms(ComputeQuote calldata q) private pure returns (bytes memory) {
        return abi.encode(
            q.validAfter,
            q.validUntil,
            q.evidenceUntil,
            q.nonce,
            q.evidenceRoot,
            q.slaHash,
            q.scoringHash,
            q.deviceCommitment,
            q.evaluator,
            q.escrow
        );
    }
}
