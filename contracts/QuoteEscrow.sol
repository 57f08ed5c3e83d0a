// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ComputeQuote, QuoteVerifier} from "./QuoteVerifier.sol";

interface IToken {
    function balanceOf(address owner) external view returns (uint256);
    function decimals() external view returns (uint8);
}

interface IAgentWallets {
    function getAgentWallet(uint256 agentId) external view returns (address);
}

/// Holds a buyer's money for exactly one quote, by its digest.
///
///     authorize  the buyer pays in the most that so many units cost, rounded up
///     capture    the provider says once how many units were used; their price, rounded down, is his; the rest goes back at once
///     refund     the evaluator gives some or all of it back, once, while the window is open
///     release    then anybody sends the provider what is left
///     reclaim    the buyer takes all back if nothing was captured in time
///
/// Promised: no quote is paid twice; no more is captured than was authorised, nor at another price; nobody but the buyer and the
/// provider's account ever gets anything; no party's silence keeps the money for good.
/// Not promised: that units were used (the evaluator's question), or tokens that take a fee or change balances by themselves (refused).
/// For tests and as an example: not audited.
contract QuoteEscrow is QuoteVerifier {
    enum State {
        None,
        Authorized,
        Captured,
        Closed
    }

    struct Hold {
        State state;
        address payer;
        address provider;
        address payTo;
        address evaluator;
        address asset;
        uint8 priceScale;
        uint64 captureBy;
        uint64 refundUntil;
        bool refunded;
        uint256 unitPriceAtomic;
        uint256 amount; // what is here
        uint256 units;
    }

    uint64 public constant REFUND_WINDOW_S = 1 days;

    mapping(bytes32 digest => Hold) private _holds;
    mapping(address provider => mapping(bytes32 quoteId => bool)) public settled; // a quote's id is good once, whatever else it says

    event Authorized(bytes32 indexed digest, address indexed payer, address indexed provider, uint256 amount, uint256 units);
    event Captured(bytes32 indexed digest, uint256 amount, uint256 units);
    event Refunded(bytes32 indexed digest, uint256 amount, bytes32 reason);
    event Released(bytes32 indexed digest, uint256 amount);
    event Reclaimed(bytes32 indexed digest, uint256 amount);

    error OtherEscrow(address escrow);
    error UsedBefore(bytes32 quoteId);
    error UnitsOutOfRange(uint256 units);
    error AboveCeiling(uint256 amount, uint256 most);
    error OtherDecimals(uint8 decimals);
    error OtherWallet(address wallet);
    error PartialEvaluator(address evaluator);
    error WrongState(State state);
    error NotAllowed(address caller);
    error TooEarly(uint64 at);
    error TooLate(uint64 at);
    error TransferFailed(address token);

    /// Pay in for `units` of a quote; the provider has until `captureBy` to capture.
    function authorize(ComputeQuote calldata q, bytes calldata signature, uint256 units, uint64 captureBy)
        external
        returns (bytes32 digest)
    {
        if (q.escrow != address(this)) revert OtherEscrow(q.escrow);
        digest = verify(q, signature);
        if (settled[q.provider][q.quoteId]) revert UsedBefore(q.quoteId);
        if (captureBy <= block.timestamp) revert TooLate(captureBy);
        if (q.evaluator == q.provider || (q.evaluator == q.payTo && q.payTo != address(0))) {
            revert PartialEvaluator(q.evaluator);
        }
        _checkOnChain(q);
        uint256 amount = _ceiling(q, units);
        settled[q.provider][q.quoteId] = true;
        _holds[digest] = _hold(q, units, amount, captureBy);
        emit Authorized(digest, msg.sender, q.provider, amount, units);
        _pull(q.asset, amount);
    }

    /// Take what `units` cost, once; the rest goes back to the buyer.
    function capture(bytes32 digest, uint256 units) external {
        Hold storage hold = _holds[digest];
        if (hold.state != State.Authorized) revert WrongState(hold.state);
        if (msg.sender != hold.provider) revert NotAllowed(msg.sender);
        if (block.timestamp > hold.captureBy) revert TooLate(hold.captureBy);
        if (units > hold.units) revert UnitsOutOfRange(units);
        uint256 amount = units * hold.unitPriceAtomic / 10 ** hold.priceScale;
        uint256 rest = hold.amount - amount;
        hold.state = State.Captured;
        hold.amount = amount;
        // Where nobody may judge, there is nothing to wait for.
        hold.refundUntil = uint64(block.timestamp) + (hold.evaluator == address(0) ? 0 : REFUND_WINDOW_S);
        emit Captured(digest, amount, units);
        _push(hold.asset, hold.payer, rest);
    }

    /// Give some of what was captured back to the buyer: once, by the evaluator, with the digest of his grounds.
    function refund(bytes32 digest, uint256 amount, bytes32 reason) external {
        Hold storage hold = _holds[digest];
        if (hold.state != State.Captured || hold.refunded) revert WrongState(hold.state);
        if (msg.sender != hold.evaluator) revert NotAllowed(msg.sender);
        if (block.timestamp > hold.refundUntil) revert TooLate(hold.refundUntil);
        if (amount > hold.amount) revert AboveCeiling(amount, hold.amount);
        hold.refunded = true;
        hold.amount -= amount;
        emit Refunded(digest, amount, reason);
        _push(hold.asset, hold.payer, amount);
    }

    /// Send the provider's account what is left, after the window or the evaluator's word.
    function release(bytes32 digest) external {
        Hold storage hold = _holds[digest];
        if (hold.state != State.Captured) revert WrongState(hold.state);
        if (!hold.refunded && hold.evaluator != address(0) && block.timestamp <= hold.refundUntil) {
            revert TooEarly(hold.refundUntil);
        }
        uint256 amount = hold.amount;
        hold.state = State.Closed;
        hold.amount = 0;
        emit Released(digest, amount);
        _push(hold.asset, hold.payTo, amount);
    }

    /// Take all back where nothing was captured in time.
    function reclaim(bytes32 digest) external {
        Hold storage hold = _holds[digest];
        if (hold.state != State.Authorized) revert WrongState(hold.state);
        if (msg.sender != hold.payer) revert NotAllowed(msg.sender);
        if (block.timestamp <= hold.captureBy) revert TooEarly(hold.captureBy);
        uint256 amount = hold.amount;
        hold.state = State.Closed;
        hold.amount = 0;
        emit Reclaimed(digest, amount);
        _push(hold.asset, hold.payer, amount);
    }

    function holdOf(bytes32 digest) external view returns (Hold memory) {
        return _holds[digest];
    }

    function _hold(ComputeQuote calldata q, uint256 units, uint256 amount, uint64 captureBy)
        private
        view
        returns (Hold memory)
    {
        return Hold({
            state: State.Authorized,
            payer: msg.sender,
            provider: q.provider,
            payTo: q.payTo,
            evaluator: q.evaluator,
            asset: q.asset,
            priceScale: q.priceScale,
            captureBy: captureBy,
            refundUntil: 0,
            refunded: false,
            unitPriceAtomic: q.unitPriceAtomic,
            amount: amount,
            units: units
        });
    }

    /// What the quote says of the chain must be so now: the token's decimals, and whose wallet is paid.
    function _checkOnChain(ComputeQuote calldata q) private view {
        uint8 decimals = IToken(q.asset).decimals();
        if (decimals != q.assetDecimals) revert OtherDecimals(decimals);
        if (q.agentRegistry == address(0)) return;
        address wallet = IAgentWallets(q.agentRegistry).getAgentWallet(q.agentId);
        if (wallet != q.payTo) revert OtherWallet(wallet);
    }

    function _ceiling(ComputeQuote calldata q, uint256 units) private pure returns (uint256 amount) {
        if (units < q.minUnits || units > q.maxUnits) revert UnitsOutOfRange(units);
        uint256 scale = 10 ** q.priceScale;
        amount = (units * q.unitPriceAtomic + scale - 1) / scale;
        if (amount > q.maxTotalAtomic) revert AboveCeiling(amount, q.maxTotalAtomic);
    }

    function _pull(address token, uint256 amount) private {
        uint256 before = IToken(token).balanceOf(address(this));
        _call(token, abi.encodeWithSignature("transferFrom(address,address,uint256)", msg.sender, address(this), amount));
        // A token that takes a fee would let one buyer's hold be paid from another's.
        if (IToken(token).balanceOf(address(this)) != before + amount) revert TransferFailed(token);
    }

    function _push(address token, address to, uint256 amount) private {
        if (amount != 0) _call(token, abi.encodeWithSignature("transfer(address,uint256)", to, amount));
    }

    /// Some tokens return nothing; some return false.
    function _call(address token, bytes memory data) private {
        (bool ok, bytes memory said) = token.call(data);
        if (!ok || (said.length != 0 && !abi.decode(said, (bool)))) revert TransferFailed(token);
    }
}
