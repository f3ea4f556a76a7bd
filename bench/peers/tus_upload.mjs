// tus-js-client with its defaults (one PATCH). A line {endpoint, path} on standard input, a line {seconds, url} back.
import fs from "node:fs";
import readline from "node:readline";
import * as tus from "tus-js-client";

function upload({ endpoint, path }) {
  return new Promise((resolve, reject) => {
    const began = process.hrtime.bigint();
    const one = new tus.Upload(fs.createReadStream(path), {
      endpoint,
      uploadSize: fs.statSync(path).size,
      onError: reject,
      onSuccess: () => resolve({ seconds: Number(process.hrtime.bigint() - began) / 1e9, url: one.url }),
    });
    one.start();
  });
}

console.log("{}");
for await (const line of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await upload(JSON.parse(line))));
}
