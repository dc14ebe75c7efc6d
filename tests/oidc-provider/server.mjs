// Starts oidc-provider on a loopback port for the suites.
//
// Standard input: one JSON document { clients, resources, scopes, lifetime }, so that no secret is on a command line.
// Standard output: one line of JSON, { issuer }, once requests are answered. It ends when standard input does.

import { createServer } from 'node:http';
import { once } from 'node:events';
import Provider, { errors } from 'oidc-provider';

const lines = process.stdin.setEncoding('utf8')[Symbol.asyncIterator]();
let text = '';
while (!text.includes('\n')) {
  const { value, done } = await lines.next();
  if (done) process.exit(2);
  text += value;
}
const { clients, resources, scopes, lifetime } = JSON.parse(text);

const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: clients.map((client) => ({
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    ...client,
  })),
  scopes,
  // Not all of them are on by default.
  enabledJWA: {
    clientAuthSigningAlgValues: ['HS256', 'HS512', 'RS256', 'RS512', 'PS256', 'PS384', 'ES256', 'ES384', 'EdDSA'],
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(ctx, resource) {
        if (!resources.includes(resource)) throw new errors.InvalidTarget();
        return { scope: scopes.join(' '), accessTokenFormat: 'jwt', accessTokenTTL: lifetime };
      },
    },
  },
});
server.on('request', provider.callback());
process.stdout.write(`${JSON.stringify({ issuer })}\n`);

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
