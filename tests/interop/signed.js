// What viem and the official SDK of x402 say of documents on standard input: one JSON object in, one out.

const { hashTypedData, hashStruct, hashDomain, keccak256, toHex, recoverTypedDataAddress, verifyTypedData, getAddress, encodeFunctionData, parseAbi } = require("viem");
const { privateKeyToAccount } = require("viem/accounts");
const sdk = require("@x402/extensions/offer-receipt");

async function typed({ data, signature, key, signer }) {
  const { domain, types, primaryType, message } = data;
  const { EIP712Domain, ...own } = types;
  const asked = { domain, types: own, primaryType, message };
  return {
    digest: hashTypedData(asked),
    struct: hashStruct({ data: message, types: own, primaryType }),
    signature: await privateKeyToAccount(key).signTypedData(asked),
    recovered: await recoverTypedDataAddress({ ...asked, signature }),
    verified: await verifyTypedData({ ...asked, signature, address: getAddress(signer) }),
  };
}

async function x402({ required, receipt, payer, strangers }) {
  const [offer] = sdk.extractOffersFromPaymentRequired(required);
  const [decoded] = sdk.decodeSignedOffers([offer]);
  const by = await sdk.verifyOfferSignatureEIP712(offer);
  const paid = await sdk.verifyReceiptSignatureEIP712(receipt);
  return {
    offerSigner: by.signer,
    offerDigest: sdk.hashOfferTypedData(offer.payload),
    accepts: sdk.findAcceptsObjectFromSignedOffer(decoded, required.accepts) === required.accepts[0],
    receiptSigner: paid.signer,
    receiptDigest: sdk.hashReceiptTypedData(receipt.payload),
    matches: sdk.verifyReceiptMatchesOffer(receipt, decoded, [payer]),
    strangersReceipt: sdk.verifyReceiptMatchesOffer(receipt, decoded, strangers),
    canonical: sdk.canonicalize(required),
  };
}

function calldata({ signature, args }) {
  const bigger = args.map((value) => (typeof value === "number" ? BigInt(value) : value));
  return encodeFunctionData({ abi: parseAbi([`function ${signature}`]), args: bigger });
}

const tasks = { typed, x402, calldata, keccak: ({ text }) => keccak256(toHex(text)) };

async function main() {
  let text = "";
  for await (const piece of process.stdin) text += piece;
  const asked = JSON.parse(text);
  const said = [];
  for (const one of asked) said.push(await tasks[one.task](one));
  process.stdout.write(JSON.stringify(said));
}

main();
