// Calls an HTTP API with a token of tokend: node call_api.mjs TOKEN URL
import http from "node:http";

// One request to tokend.
function tokend(method, path) {
  return new Promise((resolve, reject) => {
    const options = { socketPath: "/run/tokend/http.sock", method, path, agent: false };
    const request = http.request(options, async (response) => {
      let text = "";
      for await (const chunk of response.setEncoding("utf8")) text += chunk;
      const answer = JSON.parse(text);
      if (response.statusCode === 200) resolve(answer);
      else reject(new Error(`tokend: ${answer.detail}`));
    });
    request.on("error", reject).end();
  });
}

const [name, url] = process.argv.slice(2);
const token = `/v1/tokens/${encodeURIComponent(name)}`;

async function call() {
  const { headers, fingerprint } = await tokend("GET", `${token}/headers`);
  return { fingerprint, response: await fetch(url, { headers, redirect: "error" }) };
}

let { fingerprint, response } = await call();
// The API refuses a token that should be valid. One more attempt, if there is another token.
if (response.status === 401) {
  const { outcome } = await tokend("POST", `${token}/reject?fingerprint=${fingerprint}`);
  if (outcome === "replaced" || outcome === "superseded") ({ response } = await call());
}
console.log(response.status, await response.text());
