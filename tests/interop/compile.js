// Compiles every contract below the folder that it is given, and prints { name: { abi, bytecode, runtime } }.
const fs = require("fs");
const path = require("path");
const solc = require("solc");

const root = process.argv[2];
const sources = {};
for (const entry of fs.readdirSync(root, { recursive: true })) {
  if (entry.endsWith(".sol")) sources[entry] = { content: fs.readFileSync(path.join(root, entry), "utf8") };
}
const settings = {
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "cancun",
  metadata: { bytecodeHash: "none", appendCBOR: false }, // so that the code's hash names the code and nothing else
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
};
const output = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources, settings })));
if (output.errors && output.errors.length) {
  // a warning is an error
  console.error(output.errors.map((error) => error.formattedMessage).join("\n"));
  process.exit(1);
}
const found = {};
for (const contracts of Object.values(output.contracts)) {
  for (const [name, made] of Object.entries(contracts)) {
    found[name] = { abi: made.abi, bytecode: made.evm.bytecode.object, runtime: made.evm.deployedBytecode.object };
  }
}
console.log(JSON.stringify(found));
