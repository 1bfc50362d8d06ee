package main

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/spf13/cobra"
)

// certified is a certificate that was made; its JSON is kept for ever.
type certified struct {
	Name        string  `json:"name"` // site/role/id; of an authority site/ca
	Certificate string  `json:"certificate"`
	Key         string  `json:"key"`
	Ends        *string `json:"ends"`
}

func (a *app) printCertified(c certified) error {
	return a.print(c, "NAME CERTIFICATE KEY ENDS", [][]string{{c.Name, c.Certificate, c.Key, shortTime(c.Ends)}})
}

// authorityFiles are those of a site's authority in a folder.
func authorityFiles(dir string) (cert, key string) {
	return filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
}

// maxDays is the longest life of a certificate: that of a new authority.
const maxDays = int(pairing.CALife / (24 * time.Hour))

// certificateRoles are all that a certificate can be for.
var certificateRoles = []string{api.RoleVRA, api.RoleSidecar, api.RoleManager, api.RoleAdmin, api.RoleOperator, api.RoleMonitor}

func (a *app) certificateCommand() *cobra.Command {
	return parent("certificate", "Make a site's authority, and certificates for its daemons and people",
		`All that speak to each other over the network have certificates, each from the authority of
its site. The authority's key makes more of them: keep it where no daemon runs.`,
		a.authorityCommand(), a.issueCommand())
}

func (a *app) authorityCommand() *cobra.Command {
	var site, dir string
	cmd := &cobra.Command{
		Use:   "authority --site SITE --dir DIR",
		Short: "Make the authority of a site",
		Long: `Authority writes DIR/ca.pem, which all of the site, and the sites it replicates with, are
given (tls.ca, tls.peer_ca), and DIR/ca-key.pem, which stays there. It overwrites nothing.`,
		Example: "  holdfast certificate authority --site west --dir ca-west",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			if site == "" || dir == "" {
				return usagef("--site and --dir are needed: name the site, and the folder to write to")
			}
			ca, err := pairing.NewCA(site, time.Now())
			if err != nil {
				return usagef("%v: names are of a-z, 0-9, and after the first . _ -", err)
			}
			cert, key := authorityFiles(dir)
			if err := ca.Save(cert, key); err != nil {
				return err
			}
			return a.printCertified(certified{site + "/ca", cert, key, timeText(ca.Certificate().NotAfter)})
		},
	}
	cmd.Flags().StringVar(&site, "site", "", "`SITE` that it is of")
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` to write to, which exists")
	cmd.MarkFlagDirname("dir")
	return cmd
}

func (a *app) issueCommand() *cobra.Command {
	var dir, role, id, out string
	var hosts []string
	var days int
	cmd := &cobra.Command{
		Use:   "issue --authority DIR --role ROLE --id ID --out PREFIX",
		Short: "Make a certificate of the authority in DIR",
		Long: `Issue writes PREFIX.pem and PREFIX-key.pem, over those of before: so a certificate is
renewed. ROLE is what its holder may do: vra and sidecar are the daemons', manager and admin
may everything, operator works with what is there, monitor looks. ID is the daemon's, as its
file says it, or the person's. There is no list of those that were withdrawn: make them short.`,
		Example: "  holdfast certificate issue --authority ca-west --role sidecar --id vra-1 --host 192.0.2.7 --out sidecar\n  holdfast certificate issue --authority ca-west --role admin --id ann --days 7 --out ann",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case dir == "" || role == "" || id == "" || out == "":
				return usagef("--authority, --role, --id and --out are needed")
			case !slices.Contains(certificateRoles, role):
				return usagef("role %q: want one of %s", role, strings.Join(certificateRoles, ", "))
			case days < 1 || days > maxDays:
				return usagef("--days is 1 to %d", maxDays)
			}
			ca, err := pairing.LoadCA(authorityFiles(dir))
			if err != nil {
				return err
			}
			leaf, err := ca.IssueAt(pairing.Identity{Role: role, ID: id}, hosts, time.Now(), time.Duration(days)*24*time.Hour)
			if err != nil {
				return usagef("%v", err)
			}
			cert, key := out+".pem", out+"-key.pem"
			if err := leaf.Save(cert, key); err != nil {
				return err
			}
			return a.printCertified(certified{ca.Site() + "/" + role + "/" + id, cert, key, timeText(leaf.Certificate().NotAfter)})
		},
	}
	cmd.Flags().StringVar(&dir, "authority", "", "`DIR` of the authority")
	cmd.Flags().StringVar(&role, "role", "", "`ROLE` of who holds it")
	cmd.Flags().StringVar(&id, "id", "", "`ID` of who holds it, within the site")
	cmd.Flags().StringVar(&out, "out", "", "`PREFIX` of the files to write")
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "`HOST`, a name or address at which the holder is found, for clients such as curl; may be repeated")
	cmd.Flags().IntVar(&days, "days", int(pairing.LeafLife/(24*time.Hour)), "`N` days that it is good for")
	cmd.MarkFlagDirname("authority")
	cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(certificateRoles, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
