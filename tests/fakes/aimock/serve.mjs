// Serves aimock on a free loopback port, prints its address, and ends with its parent: when standard input closes.
// Usage: node serve.mjs PATH-OF-AIMOCK'S-INDEX
const { LLMock } = await import(process.argv[2]);
const mock = new LLMock({ port: 0, host: "127.0.0.1", logLevel: "silent" });
await mock.start();
process.stdout.write(`${mock.url}\n`);
process.stdin.on("end", () => process.exit(0));
process.stdin.on("error", () => process.exit(0));
process.stdin.resume();
